"""A run folder has one trainer at a time."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avff import run_lock
from avff.errors import ConfigError
from avff.run_lock import claim, holder

HOLD = """
import sys
from pathlib import Path
from avff.run_lock import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(run_dir: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", HOLD, str(run_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_trainer_is_refused_and_told_who_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.5)
    with held_by_another(tmp_path) as process:
        assert holder(tmp_path)["pid"] == process.pid
        with pytest.raises(ConfigError, match=f"process {process.pid} on .* trains here already"), claim(tmp_path):
            pass
        assert holder(tmp_path)["pid"] == process.pid, "being refused leaves the lock alone"


def test_a_killed_trainer_leaves_the_folder_free(tmp_path):
    with held_by_another(tmp_path) as process:
        process.kill()
        process.wait()
        assert holder(tmp_path) is None
        with claim(tmp_path):
            pass


def test_the_lock_is_waited_for(tmp_path, caplog):
    caplog.set_level("INFO")
    with held_by_another(tmp_path) as process:
        ending = subprocess.Popen(["sh", "-c", f"sleep 1; kill {process.pid}"])
        with claim(tmp_path):
            assert "still holds it, waiting" in caplog.text
        ending.wait()


def test_a_restarted_job_does_not_wait_for_its_earlier_self(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with held_by_another(tmp_path), claim(tmp_path):
        assert "this job's earlier start" in caplog.text


def test_an_untouched_folder_has_no_holder(tmp_path):
    assert holder(tmp_path) is None
    with claim(tmp_path / "new"):
        pass
    assert holder(tmp_path / "new") is None
