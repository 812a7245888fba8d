"""A run folder has one trainer at a time."""

import subprocess
import sys
import threading
import time
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


def test_the_lock_is_waited_for(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 300.0)
    with held_by_another(tmp_path) as process:

        def end_once_it_is_waited_for() -> None:
            while "still holds it, waiting" not in caplog.text:
                time.sleep(0.01)
            process.kill()

        threading.Thread(target=end_once_it_is_waited_for, daemon=True).start()
        with claim(tmp_path):
            pass


def test_a_restarted_job_goes_on_despite_the_lock_of_its_earlier_start(tmp_path, monkeypatch, caplog):
    """As a lost node leaves it; a second training within the same start of a job is refused like any other."""
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.5)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with held_by_another(tmp_path):
        with pytest.raises(ConfigError, match=r"\(job 77\) trains here already"), claim(tmp_path):
            pass
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with claim(tmp_path):
            assert "this job's earlier start" in caplog.text


def test_looking_at_a_free_folder_does_not_hold_it(tmp_path):
    with claim(tmp_path):
        pass
    code = f"from pathlib import Path; from avff.run_lock import holder; print(holder(Path({str(tmp_path)!r})))"
    # Looks, and stays with the file open.
    looker = "import os, time; os.close = lambda descriptor: (print('looked', flush=True), time.sleep(900));" + code
    process = subprocess.Popen([sys.executable, "-c", looker], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "looked\n"
        with held_by_another(tmp_path):
            assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_an_untouched_folder_has_no_holder(tmp_path):
    assert holder(tmp_path) is None
    with claim(tmp_path / "new"):
        pass
    assert holder(tmp_path / "new") is None
