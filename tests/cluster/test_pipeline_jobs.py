"""launch/pipeline.py with real jobs: a stage that fails stops what depends on it, and the same line goes on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from little_stages import make_stages, reading

from avff.config import save_config
from avff.run_folder import committed_steps
from launch.submit import log_path

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
OPTIONS = ["--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1", "--minutes", "20"]
OVER = ("COMPLETED", "FAILED", "CANCELLED")


@pytest.fixture
def pipeline(cluster, shard_directory, tmp_path):
    """Calls it with three stages, of which the second reads shards that are not there yet: `pipeline(*words)`."""
    stages = make_stages(shard_directory.path, tmp_path)
    stages[1] = reading(stages[1], tmp_path / "later")
    files = []
    for config in stages:
        files.append(str(tmp_path / f"{config.name}.yaml"))
        save_config(config, files[-1])
    command = [sys.executable, "launch/pipeline.py", *files, "--evaluate", str(shard_directory.path), *OPTIONS]
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}

    def call(*words: str) -> str:
        done = subprocess.run(
            [*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def submitted(text: str) -> dict[str, str]:
    """Returns step -> job of what a call has submitted."""
    return dict(re.findall(r"([\w-]+) \(job (\d+)\)", text))


def logs(folder: Path) -> Path:
    """Returns the folder of the first call."""
    return sorted((folder / "runs/jobs").iterdir())[0]


def states(text: str) -> list[str]:
    """Returns the last column of the table, without details."""
    return [re.split(r"\s{2,}", line)[2].partition(":")[0] for line in text.splitlines()[1:7]]


def test_a_failed_stage_stops_the_rest_and_the_same_line_finishes(pipeline, cluster, shard_directory, tmp_path):
    jobs = submitted(pipeline())
    assert list(jobs) == ["stage1", "stage1-to-stage2", "stage2", "stage2-to-stage3", "stage3", "stage3-evaluate"]
    again = pipeline()
    assert (states(again), submitted(again)) == (["active"] * 6, {})
    cluster.wait_for(jobs.values(), OVER)
    ends = [cluster.job(job)["JobState"] for job in jobs.values()]
    assert ends == ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert not (tmp_path / "runs/stage3/config.yaml").exists()
    table = pipeline("--status")
    assert states(table) == ["done", "done", "failed", "to do", "to do", "to do"]
    assert f"{tmp_path / 'later'}: no such shard directory" in table
    assert re.search(r"log of stage2: (.*)", table)[1] == str(log_path(logs(tmp_path), jobs["stage2"]))

    shutil.copytree(shard_directory.path, tmp_path / "later")
    first = committed_steps(tmp_path / "runs/stage1")
    more = submitted(pipeline())
    assert list(more) == ["stage2", "stage2-to-stage3", "stage3", "stage3-evaluate"]
    cluster.wait_for(more.values(), OVER)
    assert states(pipeline("--status")) == ["done"] * 6
    assert committed_steps(tmp_path / "runs/stage1") == first
    assert json.loads((tmp_path / "runs/stage3/evaluation/test/summary.json").read_text())["scored"] == 5
    assert submitted(pipeline()) == {}
