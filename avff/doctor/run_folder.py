"""The place of the run folder: shared by all nodes, with locks that hold, room and speed for checkpoints.

Rank 0 makes a probe, a hidden folder beside or in which the run will lie; every node leaves its token in it.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avff.config import Config
from avff.doctor.check import Check, Measure, fail, ok, warn
from avff.doctor.needs import bytes_in_words, checkpoint_bytes, run_bytes
from avff.files import sync, write_durably

PREFIX = ".avff-doctor-"
WRITE_BYTES = 64 * 2**20
BLOCK_BYTES = 4 * 2**20
VISIBLE_SECONDS = 10.0
"""A file server may show new names to other nodes with some delay."""
SHARE = "set runs_dir to a folder on a file system that all nodes mount (it is read relative to the current folder)"


@contextmanager
def probe(run_dir: Path) -> Iterator[Path]:
    """Makes the probe, holds its lock meanwhile, and takes it away at the end.

    Raises:
        OSError: nothing can be written or locked there.
    """
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=nearest_folder(run_dir.absolute())))
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leave_token(folder, 0)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def nearest_folder(path: Path) -> Path:
    """Returns the path itself or the first folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def leave_token(folder: Path, rank: int) -> None:
    """Writes what the other nodes look for, as checkpoints are written."""
    write_durably(folder / f"rank-{rank}", str(rank).encode())


def shared_folder(folder: Path, rank: int) -> Check:
    """Looks for the token of rank 0, and leaves one for it."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (folder / "rank-0").is_file():
        if time.monotonic() > deadline:
            return fail(f"{folder.parent}: what rank 0 writes is not seen here", SHARE)
        time.sleep(0.1)
    if rank:
        leave_token(folder, rank)
    return ok(f"{folder.parent}: what rank 0 writes is seen here")


def missing_tokens(folder: Path, first_ranks: list[int]) -> list[int]:
    """Returns the ranks whose tokens rank 0 does not see, after as long as a file server may take."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while missing := [rank for rank in first_ranks if not (folder / f"rank-{rank}").is_file()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return missing


def lock(folder: Path, rank: int) -> Check:
    """Tries to take the lock that rank 0 holds; it keeps a run folder from being used twice."""
    fix = "mount the file system with locks (NFS: without nolock or local_lock; Lustre: -o flock), or move runs_dir"
    if rank == 0:
        return ok("POSIX locks hold on all nodes")  # taken with the probe
    with (folder / "lock").open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return ok("POSIX locks hold on all nodes")
    return fail("the lock of rank 0 could be taken a second time: two jobs could write into one run", fix)


def free_space(folder: Path, config: Config) -> Check:
    """Compares what is free with one checkpoint, and with all that a run keeps."""
    found = os.statvfs(folder)
    one, all_kept = checkpoint_bytes(config), run_bytes(config)
    return judge_free_space(found.f_bavail * found.f_frsize, one, all_kept)


def judge_free_space(free_bytes: int, checkpoint: int, kept: int) -> Check:
    free = Measure("free", free_bytes / 1e9, "GB")
    value = f"a checkpoint takes {bytes_in_words(checkpoint)}, all that are kept {bytes_in_words(kept)}"
    fix = "delete old runs, move runs_dir, or lower engine.keep_checkpoints"
    if free_bytes < 2 * checkpoint:
        return fail(f"{value}; a new one is written before an old one goes", fix, free)
    return warn(value, fix, free) if free_bytes < kept else ok(value, free)


def write_speed(folder: Path, config: Config, num_nodes: int) -> Check:
    """Writes and syncs a file while the other nodes do, and says how long a checkpoint will take."""
    path = folder / f"speed-{os.getpid()}-{os.uname().nodename}"
    before = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(WRITE_BYTES // BLOCK_BYTES):
                file.write(os.urandom(BLOCK_BYTES))  # not zeros, which a file system may compress away
        sync(path)
        seconds = time.perf_counter() - before
    finally:
        path.unlink(missing_ok=True)
    return judge_speed(WRITE_BYTES / seconds, checkpoint_bytes(config) / num_nodes, config.engine.grace_seconds)


def judge_speed(bytes_per_second: float, share_bytes: float, grace_seconds: float) -> Check:
    """
    Args:
        share_bytes: of a checkpoint, that this node writes.
        grace_seconds: `engine.grace_seconds`.
    """
    save_seconds = share_bytes / bytes_per_second
    speed = Measure("write and fsync", bytes_per_second / 1e6, "MB/s")
    save = Measure("checkpoint", save_seconds, "s")
    if save_seconds > grace_seconds:
        fix = f"let the scheduler signal earlier and say so: engine.grace_seconds={3 * save_seconds:.0f}"
        return warn(f"a save takes longer than engine.grace_seconds={grace_seconds:g}", fix, speed, save)
    return ok(f"a save fits into engine.grace_seconds={grace_seconds:g}", speed, save)
