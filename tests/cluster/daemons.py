"""Background processes by name, remembered by pid and start time, so that another program finds and ends them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 900.0
"""For what takes seconds on a machine that does nothing else; on a busy one it takes what it takes."""


class ClusterError(Exception):
    """Something of the cluster did not start or answer."""


class Daemons:
    """Processes whose numbers are kept in `folder/run` and whose output goes to `folder/log`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._started: list[subprocess.Popen] = []

    def start(self, name: str, argv: Sequence[str | Path], environment: Mapping[str, str] = os.environ) -> int:
        """Starts a process in a session of its own, detached from this one; returns its pid."""
        with self.log_path(name).open("a") as log:
            process = subprocess.Popen(
                list(map(str, argv)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        self._started.append(process)
        self._path(name).write_text(f"{process.pid} {start_time(process.pid)}")
        return process.pid

    def pid(self, name: str) -> int | None:
        """Returns the pid of what was started under a name, if that very process still runs."""
        if not self._path(name).is_file():
            return None
        pid, began = self._path(name).read_text().split()
        return int(pid) if start_time(int(pid)) == began else None

    def running(self) -> list[str]:
        return [path.name for path in sorted((self.folder / "run").glob("*")) if self.pid(path.name)]

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal, waits 5 s, kills."""
        for each, seconds in ((number, 5.0), (signal.SIGKILL, PATIENCE_SECONDS)):
            pid = self.pid(name)
            if pid is None:
                break
            os.kill(pid, each)
            _poll(lambda: self.pid(name) is None, seconds)
        self._path(name).unlink(missing_ok=True)

    def log_path(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.out"

    def _path(self, name: str) -> Path:
        return self.folder / "run" / name


def start_time(pid: int) -> str | None:
    """Returns when a process began, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def children(pid: int) -> list[int]:
    """Returns the child processes of a process, as seen from here."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Returns the first true value of a condition.

    Raises:
        ClusterError: there was none.
    """
    if value := _poll(condition, PATIENCE_SECONDS):
        return value
    raise ClusterError(f"waited {PATIENCE_SECONDS:.0f} s in vain for {what}")


def _poll(condition: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def can_run(*argv: str | Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Tells whether a command ends with 0 within a minute."""
    try:
        return subprocess.run(argv, capture_output=True, timeout=60, check=False, env=environment).returncode == 0
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return False
