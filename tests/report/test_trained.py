"""The report of a run that was really trained, stopped and started again: what training writes is understood."""

import subprocess
import sys
from pathlib import Path

import pytest
from little_runs import NUM_STEPS, build_shards, make_config

from avff.config import save_config
from avff.report.charts import make_groups
from avff.report.marks import marks_of
from avff.report.page import write_report
from avff.report.runs import Run, read_runs

pytestmark = pytest.mark.slow

AT_ONCE = "engine.time_limit_minutes=0.001"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """One process: stopped after its first step, then trained to the end."""
    folder = tmp_path_factory.mktemp("trained")
    config = make_config(build_shards(folder / "shards"), folder / "runs")
    path = folder / "config.yaml"
    save_config(config, path)
    logging = ["logging.panel_every_steps=6", "logging.system_every_seconds=0.05"]
    command = [sys.executable, "-m", "avff", "train", str(path), *logging]
    for more in ([AT_ONCE], []):
        subprocess.run([*command, *more], check=False)
    [run], _ = read_runs([config.run_dir])
    assert (run.starts[1]["last_end"]["code"], run.exit["code"]) == (75, 0)
    return run


def test_every_number_is_drawn_under_its_heading(run):
    groups = {group.title: [chart.name for chart in group.charts] for group in make_groups([run])}
    assert groups["Losses and their parts"][0] == "loss"
    assert "contrastive" in groups["Losses and their parts"]
    assert {"validation/reconstruction"} <= set(groups["Validation"])
    assert {"gradient_norm/model", "gradient_norm/critics"} <= set(groups["Gradient norms"])
    assert {"clips_per_second", "goodput", "validation seconds"} <= set(groups["Speed and memory"])
    assert "system/cpu_percent" in groups["System"]
    unexplained = [name for name in groups["Losses and their parts"] if "seconds" in name or "/" in name]
    assert unexplained == [], "a new kind of number fell among the losses"


def test_every_step_is_there_and_the_second_start_is_marked(run):
    loss = next(chart for group in make_groups([run]) for chart in group.charts if chart.name == "loss")
    assert loss.lines[0].axes.step_N.tolist() == list(range(1, NUM_STEPS + 1))
    [mark] = marks_of(run)
    assert (mark.kind, mark.step) == ("start", run.starts[1]["step"])
    assert "(code 75, step " in mark.text


def test_the_page_tells_the_run(run, tmp_path: Path):
    page = write_report([run.path], tmp_path / "report.html").path.read_text()
    assert "finished" in page
    assert f"{NUM_STEPS} of {NUM_STEPS}" in page
    assert f"run, step {NUM_STEPS}</figcaption>" in page, "the newest reconstruction"
