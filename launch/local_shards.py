"""The jobs of launch/make_shards.py as processes of this machine."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avff.building.parts import finished_parts
from avff.building.plan import BuildPlan, Share
from avff.progress import progress_bar
from launch.shard_jobs import ShardJobs
from launch.snapshot import ROOT

BEAT_SECONDS = 0.5


def run_here(jobs: ShardJobs, *, dry_run: bool) -> int:
    """Runs the builders of shares beside each other, then the merge; returns the code of the merge.

    Args:
        dry_run: prints their commands instead.
    """
    cores = len(os.sched_getaffinity(0))
    at_once = min(jobs.num_shares, jobs.at_once, cores)
    commands = {share: [sys.executable, *jobs.build(ROOT, share, cores // at_once)] for share in jobs.shares}
    merge = [sys.executable, *jobs.merge(ROOT)]
    if dry_run:
        print("\n".join(shlex.join(command) for command in [*commands.values(), merge]))
        return 0
    _build_shares(jobs.plan, commands, at_once, jobs.folder)
    return subprocess.run(merge, check=False).returncode


def _build_shares(plan: BuildPlan, commands: dict[Share, list[str]], at_once: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(commands)
    running: dict[Share, subprocess.Popen] = {}
    there = len(plan.tasks) - len(plan.remaining())
    with (
        _ended_with_us(running),
        progress_bar(total=len(plan.tasks), initial=there, unit="file", description="build") as bar,
    ):
        before = len(finished_parts(plan.parts))
        while waiting or running:
            while waiting and len(running) < at_once:
                share = waiting.pop(0)
                with _log(folder, share).open("w") as log:
                    running[share] = subprocess.Popen(commands[share], stdout=log, stderr=subprocess.STDOUT)
            time.sleep(BEAT_SECONDS)
            now = len(finished_parts(plan.parts))
            bar.update(now - before)
            before = now
            for share in [share for share, process in running.items() if process.poll() is not None]:
                _report(share, running.pop(share).returncode, _log(folder, share))


def _report(share: Share, code: int, log: Path) -> None:
    if code:
        last = log.read_text().strip().rpartition("\n")[2]
        print(f"share {share} ended with code {code}, its log is {log}: {last}", file=sys.stderr)


def _log(folder: Path, share: Share) -> Path:
    return folder / f"share-{share.index}-of-{share.count}.log"


@contextmanager
def _ended_with_us(running: dict[Share, subprocess.Popen]) -> Iterator[None]:
    """Passes an end by signal on to the processes, which keep what they have built, and waits for them."""
    try:
        yield
    except BaseException:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        raise
