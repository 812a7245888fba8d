"""A build that is told to stop, or loses a worker: it ends at once and says how to go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

MAKE_SHARDS = Path(__file__).parents[2] / "tools" / "make_shards.py"
NUM_COPIES = 40
PATIENCE_SECONDS = 300

pytestmark = pytest.mark.slow


@pytest.fixture
def many_files(media_folder, tmp_path) -> Path:
    """So many files that a build of them can be caught in the middle."""
    folder = tmp_path / "media"
    for number in range(NUM_COPIES):
        shutil.copytree(media_folder / "a", folder / str(number))
    return folder


def start(folder: Path, output: Path) -> subprocess.Popen:
    words = ["--input", str(folder), "--output", str(output), "--mode", "frame", "--num-workers", "2"]
    # A shell that runs the tests in the background has them, and what they start, ignore Ctrl-C.
    command = ["env", "--default-signal=INT", sys.executable, str(MAKE_SHARDS), *words]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_parts(output: Path, count: int = 4) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(list(output.glob(".parts/part-*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen) -> str:
    """Waits for a process and all that it started; returns what it said on stderr."""
    error = process.communicate(timeout=PATIENCE_SECONDS)[1]
    left = [other for other in psutil.process_iter() if _session(other.pid) == process.pid]
    assert psutil.wait_procs(left, timeout=PATIENCE_SECONDS)[1] == []
    return error


def kill_one_that_reads(pid: int) -> None:
    """Kills a worker with a file open; each is halted while it is looked at, so that it cannot be done by then."""
    workers = [one for one in psutil.Process(pid).children() if "spawn_main" in " ".join(one.cmdline())]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for worker in workers:
            worker.suspend()
            if any(file.path.endswith(".mov") for file in worker.open_files()):
                worker.kill()
                return
            worker.resume()
    raise AssertionError("no worker was seen with a file open")


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@pytest.mark.parametrize(
    ("signals", "code", "words"),
    [
        ([signal.SIGINT, signal.SIGINT], 130, "interrupted; finished sources are kept"),
        ([signal.SIGUSR2], 75, "stopped by SIGUSR2; finished sources are kept"),
        ([signal.SIGTERM, signal.SIGTERM], 75, "stopped by SIGTERM; finished sources are kept"),
    ],
    ids=["ctrl-c-twice", "usr2", "term-twice"],
)
def test_signals_to_all_processes_end_it_at_once(many_files, tmp_path, signals, code, words):
    output = tmp_path / "shards"
    process = start(many_files, output)
    wait_for_parts(output)
    for number in signals:
        os.killpg(process.pid, number)
        time.sleep(0.02)
    error = end(process)
    assert (process.returncode, words in error) == (code, True), error
    assert "Traceback" not in error
    assert 4 <= len(list(output.glob(".parts/part-*.json"))) < 3 * NUM_COPIES


def test_a_killed_worker_is_named_by_what_it_read(many_files, tmp_path):
    output = tmp_path / "shards"
    process = start(many_files, output)
    wait_for_parts(output)
    kill_one_that_reads(process.pid)
    error = end(process)
    assert process.returncode == 2
    assert "a worker process died" in error and "while these were read: " in error and "clip " in error
