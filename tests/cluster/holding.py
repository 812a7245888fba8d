"""Runs that are held in the middle until SLURM has told them to stop, so that none is over before on a fast machine."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import Cluster
from daemons import wait_until


@contextmanager
def held_until_told(cluster: Cluster, job: str, run_dir: Path) -> Iterator[None]:
    """Suspends a job's ranks; after the block, waits until USR2 has come to them and they go on."""
    cluster.run("scancel", "--signal=STOP", job)
    wait_until(lambda: _is_stopped(_status(cluster, run_dir)), f"job {job} to be suspended")
    yield
    wait_until(lambda: _goes_on_if_told(cluster, job, run_dir), f"SLURM to tell job {job} to stop")


def _status(cluster: Cluster, run_dir: Path) -> str:
    """What the kernel says about rank 0; nothing when it has ended."""
    rank = json.loads((run_dir / "lock").read_text())
    return cluster.exec(rank["host"], ["sh", "-c", f"cat /proc/{rank['pid']}/status || true"])


def _is_stopped(status: str) -> bool:
    return re.search(r"^State:\s*T", status, re.MULTILINE) is not None


def _goes_on_if_told(cluster: Cluster, job: str, run_dir: Path) -> bool:
    """SLURM lets a job go on by itself with some signals, and not with all."""
    status = _status(cluster, run_dir)
    masks = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)$", status, re.MULTILINE)
    if _is_stopped(status) and any(int(mask, 16) >> (signal.SIGUSR2 - 1) & 1 for mask in masks):
        # By now the job may have gone on, and ended.
        subprocess.run(["scancel", "--quiet", "--signal=CONT", job], env=cluster.environment, check=False)
    return not _is_stopped(status)
