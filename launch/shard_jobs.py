"""The jobs that build a shard directory together: an array that builds the parts, and one that lays them into shards."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avff.building.build import claim
from avff.building.locks import hold
from avff.building.plan import BuildPlan, Share
from avff.errors import ConfigError
from launch.resources import Resources
from launch.snapshot import take_snapshot
from launch.submit import Command, active_job, describe, record_job, submit


@dataclass(frozen=True, kw_only=True)
class ShardJobs:
    """What the jobs of one shard directory do.

    Attributes:
        words: options of tools/make_shards.py.
        num_shares: of which there are so many in all.
        shares: that lack something, so that each needs a job.
        at_once: most jobs that run at once.
        folder: for scripts and logs.
    """

    plan: BuildPlan
    words: tuple[str, ...]
    num_shares: int
    shares: Sequence[Share]
    at_once: int
    folder: Path

    @property
    def name(self) -> str:
        return f"shards-{self.plan.output.name}"

    def build(self, code: Path, share: Share, num_workers: int) -> tuple[str, ...]:
        """Returns the words after `python` that build a share with the tool of `code`, a checkout or a copy."""
        # What was typed comes last, and so counts.
        return (_tool(code), "--num-workers", str(num_workers), *self.words, "--share", str(share))

    def merge(self, code: Path) -> tuple[str, ...]:
        """Returns the words after `python` that lay the parts into shards."""
        return (_tool(code), *self.words, "--merge-shares", str(self.num_shares))


def submit_jobs(jobs: ShardJobs, wanted: Resources, runs_dir: Path) -> tuple[list[str], str]:
    """Submits the array and the merge; returns a job per share, and that of the merge.

    Args:
        wanted: of a job that builds a share.
        runs_dir: for the copy of the code.

    Raises:
        ConfigError: jobs for this directory are queued already, or somebody lays shards there.
    """
    plan = jobs.plan
    if job := active_job(plan.parts):
        raise ConfigError(f"{plan.output}: job {job} waits for its shares already; to submit others: scancel {job}")
    with hold(plan.parts, shared=True):
        claim(plan)
    code, array = take_snapshot(runs_dir), []
    if jobs.shares:
        builders = _builders(jobs, code, wanted)
        array = submit(builders, wanted, folder=jobs.folder, snapshot=code, array_parallelism=jobs.at_once)
    after = _after_all(wanted, array[0].partition("_")[0] if array else "")
    [last] = submit([_merger(jobs, code)], after, folder=jobs.folder, snapshot=code)
    record_job(plan.parts, last, jobs.folder)
    return array, last


def describe_jobs(jobs: ShardJobs, wanted: Resources, code: Path) -> str:
    """Returns the scripts that `submit_jobs` would hand to sbatch."""
    texts = []
    if jobs.shares:
        builders = _builders(jobs, code, wanted)
        texts.append(describe(builders, wanted, folder=jobs.folder, snapshot=code, array_parallelism=jobs.at_once))
    after = _after_all(wanted, "ARRAY" if jobs.shares else "")
    texts.append(describe([_merger(jobs, code)], after, folder=jobs.folder, snapshot=code))
    return "\n\n".join(texts)


def _builders(jobs: ShardJobs, code: Path, wanted: Resources) -> list[Command]:
    return [Command(jobs.build(code, share, wanted.cpus_per_task), None, jobs.name) for share in jobs.shares]


def _merger(jobs: ShardJobs, code: Path) -> Command:
    return Command(jobs.merge(code), None, f"{jobs.name}-merge")


def _after_all(wanted: Resources, array: str) -> Resources:
    """Returns what the merge asks for: one core, once every job of the array has ended, well or not.

    Where one has failed, the merge says which and what it lacks; a merge that SLURM cancels would say nothing.
    """
    options = wanted.sbatch
    if array:  # which has waited for whatever else was to be waited for
        others = (text for text in options if text.partition("=")[0] != "--dependency")
        options = (*others, f"--dependency=afterany:{array}")
    return dataclasses.replace(wanted, cpus_per_task=1, gpus_per_node=0, sbatch=options)


def _tool(code: Path) -> str:
    return str(code / "tools" / "make_shards.py")
