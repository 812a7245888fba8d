"""Memory and limits of one node against what the config asks of it."""

import os
import resource
from pathlib import Path

from avff.config import Config
from avff.doctor.check import Check, Measure, fail, ok, warn
from avff.doctor.needs import bytes_in_words, read_ahead_bytes
from avff.doctor.nodes import counted

OTHER_FILES = 256
"""Sockets, logs, libraries and shards that a rank holds open besides connections to its workers."""
THREADS_PER_RANK = 64
SHARED_BYTES_PER_RANK = 64 * 10**6
"""What NCCL puts into /dev/shm per rank, with some room."""
INFINIBAND = Path("/sys/class/infiniband")


def memory(config: Config, num_ranks_here: int, world_size: int) -> Check:
    """Compares what loaders and checkpoints will hold with what this node has left."""
    needed = num_ranks_here * read_ahead_bytes(config, world_size)
    return judge_memory(needed, available_bytes())


def judge_memory(needed_bytes: int, free_bytes: int) -> Check:
    value = f"{bytes_in_words(needed_bytes)} will be read ahead"
    free = Measure("free", free_bytes / 1e9, "GB")
    fix = "lower data.prefetch_steps or data.num_workers, or ask for more memory (SLURM: --mem, 0 for all of a node)"
    if needed_bytes > free_bytes:
        return fail(value, fix, free)
    return warn(value, fix, free) if needed_bytes > 0.5 * free_bytes else ok(value, free)


def available_bytes() -> int:
    """Returns the memory that is left for this job: of the machine, and of its control group."""
    import psutil

    limits = [psutil.virtual_memory().available]
    limits += group_room_bytes(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
    return min(limits)


def group_room_bytes(groups: str, root: Path) -> list[int]:
    """Returns limit less use of every control group that this process is in and that has a limit.

    Args:
        groups: content of /proc/self/cgroup.
        root: where control groups are mounted.
    """
    rooms = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version_1 = bool(controllers)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version_1 else ("memory.max", "memory.current")
        folder = (root / "memory" if version_1 else root) / path.lstrip("/")
        for each in (folder, *folder.parents):
            limit, used = (each / name for name in names)
            if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
                rooms.append(max(0, int(limit.read_text()) - int(used.read_text())))
    return rooms


def shared_memory(path: Path, num_ranks_here: int) -> Check:
    """Takes from /dev/shm what NCCL would take, and gives it back."""
    wanted = num_ranks_here * SHARED_BYTES_PER_RANK
    found = os.statvfs(path)
    free_bytes = found.f_bavail * found.f_frsize
    free = Measure("free", free_bytes / 1e9, "GB")
    fix = f"delete what is left in {path}, or give the container more (docker: --shm-size=8g; pyxis shares the node's)"
    if free_bytes < wanted:
        return fail(
            f"{path} has no room for the {bytes_in_words(wanted)} of {counted(num_ranks_here, 'rank')}", fix, free
        )
    _allocate(path, wanted)
    return ok(f"{path} has room for {counted(num_ranks_here, 'rank')}", free)


def _allocate(folder: Path, num_bytes: int) -> None:
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    finally:
        os.close(descriptor)


def open_files(config: Config | None, num_ranks_here: int) -> Check:
    """Compares the limit with what ranks hold open, and with what their workers have on its way (avff.data.handover)."""
    workers, steps = (config.data.num_workers, config.data.prefetch_steps) if config else (0, 0)
    return judge_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1], workers, steps, num_ranks_here)


def judge_open_files(hard_limit: int, num_workers: int, prefetch_steps: int, num_ranks_here: int) -> Check:
    """A rank raises its limit to the hard one, and holds a connection to each worker.

    A step whose memory is new, as at the start of a run, is on its way as an open file until its rank takes it. The limit
    is also that of all such files of a user; beyond it workers wait, for as long as ranks compute and take none.
    """
    per_rank, together = num_workers + OTHER_FILES, num_ranks_here * num_workers * prefetch_steps
    fix = (
        f"ulimit -n {max(per_rank, together)} before the start (SLURM: PropagateResourceLimits, or LimitNOFILE of slurmd), "
        "or lower data.num_workers or data.prefetch_steps"
    )
    if hard_limit != resource.RLIM_INFINITY and hard_limit < per_rank:
        return fail(f"{hard_limit} may be open, a rank needs {per_rank}", fix)
    if hard_limit != resource.RLIM_INFINITY and hard_limit < together:
        return warn(
            f"{hard_limit} may be open, workers of {counted(num_ranks_here, 'rank')} send up to {together} at once", fix
        )
    return ok(f"{'any number' if hard_limit == resource.RLIM_INFINITY else hard_limit} may be open")


def processes(config: Config | None, num_ranks_here: int) -> Check:
    workers = config.data.num_workers if config else 0
    return judge_processes(resource.getrlimit(resource.RLIMIT_NPROC)[0], workers, num_ranks_here)


def judge_processes(limit: int, num_workers: int, num_ranks_here: int) -> Check:
    needed = num_ranks_here * (THREADS_PER_RANK + 2 * num_workers)
    if limit != resource.RLIM_INFINITY and limit < needed:
        return fail(
            f"{limit} processes and threads per user, {num_ranks_here} ranks need about {needed}",
            f"ulimit -u {2 * needed} before the start",
        )
    return ok("any number per user" if limit == resource.RLIM_INFINITY else f"{limit} per user")


def locked_memory() -> Check:
    return judge_locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[1], has_infiniband())


def judge_locked_memory(limit_bytes: int, has_infiniband: bool) -> Check:
    """NCCL registers its buffers with an InfiniBand card, which locks them in memory."""
    if limit_bytes == resource.RLIM_INFINITY:
        return ok("unlimited")
    if not has_infiniband:
        return ok(f"{limit_bytes / 1e6:.0f} MB, no InfiniBand here that needs more")
    return fail(
        f"{limit_bytes / 1e6:.0f} MB may be locked, InfiniBand needs more",
        "ulimit -l unlimited (LimitMEMLOCK=infinity for slurmd; docker: --ulimit memlock=-1)",
    )


def has_infiniband() -> bool:
    return INFINIBAND.is_dir() and any(INFINIBAND.iterdir())
