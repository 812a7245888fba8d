#!/usr/bin/env python
"""Builds a shard directory by many jobs: each builds a share of the parts, and one more lays them into shards."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avff.building import arguments as building
from avff.building.plan import BuildPlan, Share
from avff.building.summary import rejects_table, summarize
from avff.building.workers import Stopped, stopping_on_signals
from avff.data.shards import open_directory
from avff.errors import PREEMPTED_EXIT_CODE, AvffError, ConfigError, describe, exit_code
from launch import resources
from launch.local_shards import run_here
from launch.resources import Resources
from launch.shard_jobs import ShardJobs, describe_jobs, submit_jobs
from launch.snapshot import snapshot_folder
from launch.submit import active_job, log_path, require_slurm

EPILOG = """\
examples:
  python launch/make_shards.py --jobs 64 --input kinetics/train --output shards/kinetics --mode frame --is-fake 0 \\
      --split train --cpus-per-task 16 --minutes 480 --partition cpu
  python launch/make_shards.py --jobs 64 --input faces.csv --output shards/faces --dry-run     what would be submitted
  python launch/make_shards.py --jobs 64 --input faces.csv --output shards/faces --status      how far each share is
  python launch/make_shards.py --jobs 4 --input faces.csv --output shards/faces --executor local

The result is that of tools/make_shards.py with the same options, to the byte, whatever --jobs. The same line again
builds only what is missing, also with another number of jobs. A job that reaches its time limit or is preempted goes on
by itself. One that fails (a worker killed for its memory, say) does not hold up the others; the last job then lays
nothing, and its log names what each share lacks. Inputs are read from where you submit; all nodes have to see them.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Returns 0, 75 when a signal stopped it (--executor local), or an error's code (avff.errors.exit_code)."""
    words = list(sys.argv[1:] if words is None else words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = resources.parse(make_parser(), words)
        with stopping_on_signals():
            return run(options, tool_words(words))
    except (AvffError, KeyboardInterrupt) as error:
        print(f"launch/make_shards.py: {describe(error)}", file=sys.stderr)
        return PREEMPTED_EXIT_CODE if isinstance(error, Stopped) else exit_code(error)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _add_own_options(parser)
    building.add_options(parser)
    return parser


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("jobs")
    group.add_argument("--jobs", type=int, required=True, metavar="N", help="shares of the sources, each a job")
    group.add_argument(
        "--at-once", type=int, default=256, metavar="N", help="most jobs that run at once (default: 256)"
    )
    group.add_argument(
        "--executor",
        choices=("slurm", "local"),
        default="slurm",
        help="slurm: an array of jobs; local: processes of this machine, which share its cores (default: slurm)",
    )
    group.add_argument("--runs-dir", type=Path, default=Path("runs"), help="for logs and the copy of the code (runs)")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would be run or submitted, and do nothing")
    what.add_argument("--status", action="store_true", help="print how far each share is, and do nothing")
    resources.add_options(parser, cpus_per_task=8, minutes=240)


def tool_words(words: Sequence[str]) -> list[str]:
    """Returns those words that are options of tools/make_shards.py, as they were typed."""
    own = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    _add_own_options(own)
    return own.parse_known_args(words)[1]


def run(options: argparse.Namespace, words: list[str]) -> int:
    """Checks everything that can be checked here, then submits or runs what is missing."""
    wanted = check(options)
    if options.executor == "slurm" and not (options.dry_run or options.status):
        require_slurm()
    plan, _ = building.read_plan(options)
    if plan.is_complete():
        print(f"{plan.output}: already built with these arguments")
        print("\n".join([summarize(open_directory(plan.output)).as_text(), *rejects_table(plan.output)]))
        return 0
    missing = missing_of(plan, options.jobs)
    print(format_status(plan, missing, active_job(plan.parts)))
    if options.status:
        return 0
    jobs = ShardJobs(
        plan=plan,
        words=tuple(words),
        num_shares=options.jobs,
        shares=[share for share, count in missing.items() if count],
        at_once=options.at_once,
        folder=options.runs_dir / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-shards-{plan.output.name}",
    )
    if options.executor == "local":
        return run_here(jobs, dry_run=options.dry_run)
    if options.dry_run:
        print(describe_jobs(jobs, wanted, snapshot_folder(options.runs_dir)))
    else:
        report(jobs, *submit_jobs(jobs, wanted, options.runs_dir))
    return 0


def check(options: argparse.Namespace) -> Resources:
    """Returns the resources of a job that builds a share.

    Raises:
        ConfigError: unknown or impossible options.
    """
    wanted = resources.from_options(options)
    if options.jobs < 1 or options.at_once < 1:
        raise ConfigError(f"--jobs {options.jobs}, --at-once {options.at_once}: use 1 or more")
    if wanted.num_tasks > 1:
        raise ConfigError(
            f"{wanted.nodes} nodes with {wanted.tasks_per_node} tasks: a job builds its share in one task; use --jobs for "
            "more jobs and --cpus-per-task for larger ones"
        )
    return wanted


def missing_of(plan: BuildPlan, jobs: int) -> dict[Share, int]:
    """Returns how many sources of each share are not built."""
    missing = {Share(index, jobs): 0 for index in range(min(jobs, len(plan.tasks)))}
    for task in plan.remaining():
        missing[Share(task.number % jobs, jobs)] += 1
    return missing


def format_status(plan: BuildPlan, missing: dict[Share, int], job: str | None) -> str:
    """Returns a line for the directory and one for each share that lacks something."""
    left = sum(missing.values())
    work = f"; job {job} will lay them into shards" if job else ""
    lines = [f"{plan.output}: {len(plan.tasks) - left} of {len(plan.tasks)} sources are built{work}"]
    for share, count in missing.items():
        if count:
            total = share.size(len(plan.tasks))
            lines.append(f"share {share}: {total - count} of {total}")
    return "\n".join(lines)


def report(jobs: ShardJobs, array: list[str], last: str) -> None:
    """Prints what was submitted, and how to watch and stop it."""
    for share, job in zip(jobs.shares, array, strict=True):
        print(f"job {job}: share {share}, log {log_path(jobs.folder, job)}")
    print(f"job {last}: shards and manifest, log {log_path(jobs.folder, last)}")
    numbers = sorted({job.partition("_")[0] for job in (*array, last)}, key=int)
    print(f"queue    squeue --jobs {','.join(numbers)}")
    print("status   the same line with --status")
    print(f"end      scancel {' '.join(numbers)}        (the same line goes on)")


if __name__ == "__main__":
    sys.exit(main())
