"""How a launch ends: codes and words of its ranks, signals through launch/torchrun.sh, and what it leaves behind."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launches import PATIENCE_SECONDS, Training

from avff.json_lines import read_lines
from avff.run_folder import committed_steps

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "torchrun.sh"
LONG = 100_000
"""Steps."""


def rank_codes(log: str) -> set[int]:
    """Codes of the ranks that failed, as torchrun reports them."""
    return {int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", log)}


def test_a_run_ends_with_0_and_compiles_nothing(lab, monkeypatch, tmp_path):
    """A lock that a killed compiler leaves hangs every later start: there is to be no compiler."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cell = lab.cell("compiles_nothing")
    cell.finish(overrides=["logging.wandb=offline"])
    assert list(tmp_path.iterdir()) == []
    assert [line["last_end"] for line in read_lines(cell.run_dir / "starts.jsonl")] == [None]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("engine.batch=3", "engine.batch"),  # refused before the ranks meet
        ("engine.micro_batch_size=3", "engine.micro_batch_size 3 does not divide"),  # when they know how many they are
        ("data.train=[{path: nowhere}]", "nowhere"),  # agreed on
    ],
)
def test_a_refusal_is_printed_once_and_every_rank_ends_with_2(lab, override, sentence):
    cell = lab.cell(re.sub(r"\W+", "_", override))
    with Training(cell.config_path, overrides=[override]) as training:
        assert training.wait() == 1
        log = training.log
    assert [line.startswith("avff train: ") for line in log.splitlines() if sentence in line] == [True], log
    assert "rank 0 (host" not in log and "Traceback" not in log.partition("avff train: ")[0]
    # torchrun ends the other rank with TERM, which comes before its own refusal where it is the slower one.
    assert {2} <= rank_codes(log) <= {2, -signal.SIGTERM}, log


def test_a_refusal_is_heard_although_the_rank_that_speaks_is_the_last(lab, monkeypatch, tmp_path):
    """torchrun ends all ranks with the first that ends: here rank 1 refuses seconds before rank 0 does."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('LOCAL_RANK') == '0':\n    time.sleep(5)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cell = lab.cell("speaks_last")
    with Training(cell.config_path, overrides=["engine.batch=3"]) as training:
        assert training.wait() == 1
        assert training.log.count("avff train: ") == 1, training.log
    assert rank_codes(training.log) == {2}, training.log


def test_term_to_the_launch_script_saves_and_waits(lab):
    cell = lab.cell("launch_script")
    # Too long to be over before the signal comes, and without a save of its own: what is there was saved for the signal.
    overrides = [f"{name}={LONG}" for name in ("optim.num_steps", "engine.checkpoint_every_steps")]
    overrides.append(f"engine.validate_every_steps={LONG}")
    command = [str(SCRIPT), str(cell.config_path), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PROCESSES": "2"}
    with (cell.folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    try:
        while not any(line["step"] > 0 for line in read_lines(cell.run_dir / "metrics.jsonl")):
            assert process.poll() is None, (cell.folder / "log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_SECONDS) == 75
    finally:
        process.kill()
    assert cell.exit["code"] == 75 and re.match("stopped by SIGUSR2 on rank [01]", cell.exit["reason"])
    assert committed_steps(cell.run_dir) == [cell.exit["step"]]
    assert rank_codes((cell.folder / "log").read_text()) == {75}
