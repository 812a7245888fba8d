"""One training per run folder: a lock that ends with its process, and says who holds it.

A POSIX record lock, which network file systems know too, is not handed on to forked loader workers, and is gone with
the process however that ends.
"""

import fcntl
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avff.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK = "lock"
WAIT_SECONDS = 30.0
"""For the processes of the launch before, which may still be ending."""
BEAT_SECONDS = 0.2

_FLOCK = "hhqqi"
"""struct flock on 64-bit Linux: type, whence, start, length, pid."""


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Holds a run folder, made if need be, for this process.

    On a file system without locks it warns and goes on. So does, after the wait, the restart of a SLURM job whose
    earlier start seems to hold the folder: SLURM has ended that, and a lost node's lock may outlive it by minutes.

    Raises:
        ConfigError: another process still trains here after half a minute; it is named.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _lock(descriptor, run_dir):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # which ends the lock


def holder(run_dir: Path) -> dict[str, Any] | None:
    """Returns host, pid, job (empty outside SLURM) and restart of the process that trains in a folder; None if none does.

    Not for the process that holds it: looking would end the lock.
    """
    if not (run_dir / LOCK).is_file():
        return None
    descriptor = os.open(run_dir / LOCK, os.O_RDONLY)  # others' folders can be looked at, too
    try:
        return _read(descriptor) if _is_held(descriptor) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> bool:
    """Returns whether the folder is locked now, as far as its file system can."""
    deadline, announced = time.monotonic() + WAIT_SECONDS, False
    while (is_free := _try_lock(descriptor)) is False:
        other = _read(descriptor)
        who = f"process {other['pid']} on {other['host']}" + (f" (job {other['job']})" if other["job"] else "")
        if time.monotonic() > deadline and _is_earlier_self(other):
            logger.warning("%s: still locked by this job's earlier start, %s; going on", run_dir, who)
            return False
        if time.monotonic() > deadline:
            raise ConfigError(f"{run_dir}: {who} trains here already; stop it first, or give this run another `name`")
        if not announced:
            logger.info("%s: %s still holds it, waiting up to %.0f s", run_dir, who, WAIT_SECONDS)
            announced = True
        time.sleep(BEAT_SECONDS)
    if is_free is None:
        logger.warning("%s: this file system has no locks; see to it that no second run starts here", run_dir)
    return bool(is_free)


def _is_earlier_self(other: dict[str, Any]) -> bool:
    me = _myself()
    return bool(me["job"]) and other["job"] == me["job"] and other["restart"] < me["restart"]


def _try_lock(descriptor: int) -> bool | None:
    """Takes the lock if it is free; None where the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None


def _is_held(descriptor: int) -> bool:
    """Asks without taking the lock, for which a training that starts right now would have to wait."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, question)
    except OSError:
        return False  # no locks on this file system
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK


def _myself() -> dict[str, Any]:
    job, restart = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "restart": restart}


def _read(descriptor: int) -> dict[str, Any]:
    """What the holder wrote; it may not have come to that yet."""
    try:
        return json.loads(os.pread(descriptor, 4096, 0))
    except json.JSONDecodeError:
        return {"host": "unknown", "pid": 0, "job": "", "restart": 0}
