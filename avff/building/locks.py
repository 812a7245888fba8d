"""Who may work in a shard directory: one process that lays shards, or any number that build parts of them.

The locks end with their processes, however those end. NFS passes `flock` on to its server; where a file system has no
locks, a warning says so and the work goes on.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from avff.errors import ConfigError

logger = logging.getLogger(__name__)

WAIT_SECONDS = 30.0
"""For processes that are still ending, such as those of a node that was lost."""
BEAT_SECONDS = 0.2


@contextmanager
def hold(parts: Path, *, shared: bool) -> Iterator[None]:
    """Keeps others out of a shard directory.

    Args:
        parts: its parts folder, made if need be, where the lock lies.
        shared: True lets others in that share it as well: builders of parts.

    Raises:
        ConfigError: somebody else still works here after half a minute; the last to begin is named.
    """
    deadline, announced = time.monotonic() + WAIT_SECONDS, False
    while (file := _try(parts, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)) is None:
        who = f"{parts.parent}: {_last_to_begin(parts)} builds here"
        if time.monotonic() > deadline:
            raise ConfigError(f"{who}; wait for it or stop it")
        if not announced:
            logger.info("%s, waiting up to %.0f s", who, WAIT_SECONDS)
            announced = True
        time.sleep(BEAT_SECONDS)
    with file:
        yield


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Serialises a block among all who name the same file, waiting for as long as it takes."""
    with path.open("a") as file:
        _flock(file, fcntl.LOCK_EX)
        yield


def _try(parts: Path, kind: int) -> IO[str] | None:
    """Returns the locked file; None while others hold it, or if who held it has just removed it."""
    parts.mkdir(parents=True, exist_ok=True)
    path = parts / "lock"
    file = path.open("a+")
    if _flock(file, kind | fcntl.LOCK_NB) and _is_at(file, path):
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "job": _job()}))
        file.flush()
        return file
    file.close()
    return None


def _flock(file: IO[str], operation: int) -> bool:
    """Returns whether the lock was taken, as far as the file system can tell."""
    try:
        fcntl.flock(file, operation)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning(
            "%s: no locks on this file system (%s); see to it that nobody else builds here", file.name, error
        )
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _job() -> str:
    """The SLURM job that this process belongs to, as squeue writes it; empty outside SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def _last_to_begin(parts: Path) -> str:
    try:
        values = json.loads((parts / "lock").read_bytes())
    except (OSError, ValueError):
        return "another process"
    job = f" (job {values['job']})" if values["job"] else ""
    return f"process {values['pid']} on {values['host']}{job}"
