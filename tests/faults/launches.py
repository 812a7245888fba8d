"""Launches of real training, whose processes tests find, kill and leave none of."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from worker import Fault

PATIENCE_SECONDS = 900.0
"""For what takes seconds on a machine that does nothing else; on a busy one it takes what it takes."""

_MARKER = "AVFF_TEST_LAUNCH"
_HERE = Path(__file__).parent


class Training:
    """One launch of `torchrun ... avff train CONFIG` with two ranks, in a session of its own.

    Args:
        config_path: the log of the launch is written beside it.
        faults: what is to go wrong in it; without any, the very command that users type.
        overrides: of the config.
    """

    def __init__(self, config_path: Path, *, faults: Sequence[Fault] = (), overrides: Sequence[str] = ()):
        folder, self._id = config_path.parent, uuid.uuid4().hex
        number = len(list(folder.glob("launch-*.log")))
        self.log_path = folder / f"launch-{number}.log"
        program = ["-m", "avff"]
        if faults:
            path = folder / f"faults-{number}.json"
            path.write_text(json.dumps([dataclasses.asdict(fault) for fault in faults]))
            program = [str(_HERE / "worker.py"), str(path)]
        # --standalone takes any free port: 29500 may belong to another run on this machine.
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [sys.executable, *torchrun, *program, "train", str(config_path), *overrides]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=_HERE.parents[1],
                env={**os.environ, "OMP_NUM_THREADS": "1", _MARKER: self._id},
            )

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        while pids := self.pids():
            for pid in pids:
                kill(pid)
            time.sleep(0.05)
        self.process.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def pids(self) -> list[int]:
        """Returns every process of this launch that runs or is frozen, torchrun and loader workers included."""
        marker = f"{_MARKER}={self._id}".encode()
        return [pid for pid in _all_pids() if marker in _read(f"/proc/{pid}/environ").split(b"\0")]

    def rank_pids(self) -> dict[int, int]:
        """Returns rank -> process number."""
        ranks = {}
        for pid in self.pids():
            if _parent(pid) == self.process.pid:
                values = dict(item.partition(b"=")[::2] for item in _read(f"/proc/{pid}/environ").split(b"\0"))
                if b"RANK" in values:
                    ranks[int(values[b"RANK"])] = pid
        return ranks

    def worker_pids(self) -> list[int]:
        """Returns the loader workers of all ranks, which are forks of them."""
        ranks = set(self.rank_pids().values())
        children = [pid for pid in self.pids() if _parent(pid) in ranks]
        return [pid for pid in children if _read(f"/proc/{pid}/cmdline") == _read(f"/proc/{_parent(pid)}/cmdline")]

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def pause(self, seconds: float) -> None:
        """Lets time pass, less if torchrun ends."""
        for _ in _ticks(seconds):
            if self.has_ended:
                return

    def wait(self) -> int:
        """Waits for torchrun and returns its code, which tells no more than 0 or not."""
        self.wait_for(lambda: self.has_ended)
        return self.process.returncode

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Waits until something is so.

        Raises:
            AssertionError: it did not come about; with the end of the log.
        """
        for _ in _ticks(PATIENCE_SECONDS):
            if condition():
                return
        raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain\n{self.log[-6000:]}")


def _ticks(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(path: str) -> bytes:
    """Returns a file of /proc; nothing for a process that is gone, or a zombie's environment."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _parent(pid: int) -> int:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
