#!/usr/bin/env python
"""Trains stage after stage, carries the weights from each to the next, and evaluates the last: one command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avff.config import Config, load_config
from avff.errors import AvffError, ConfigError, describe, exit_code
from launch import resources
from launch.local_pipeline import command_line, run_here
from launch.pipeline_steps import Progress, State, Step
from launch.plan_pipeline import assess, missing_shards, new_folder, plan_steps
from launch.slurm_pipeline import describe_jobs, submit_steps
from launch.submit import active_job, last_log, require_slurm

EPILOG = """\
examples:
  python launch/pipeline.py configs/stage1_kinetics.yaml configs/stage2_faces.yaml configs/stage3_finetune.yaml \\
      --evaluate shards/test --nodes 4 --gpus-per-node 8 --cpus-per-task 12 --minutes 1440 --partition gpu
  python launch/pipeline.py configs/demo/stage*.yaml --evaluate runs/demo/shards/heads --executor local
  python launch/pipeline.py configs/demo/stage*.yaml --status
  python launch/pipeline.py a.yaml b.yaml --dry-run --nodes 2 optim.weight_decay=0.1

A stage starts from the file that its config names in engine.init_weights; the step before makes that file from the
stage before (tools/adapt_weights.py, its best checkpoint). The same line again goes on: what is done is skipped, what
is queued or running is waited for, what failed is run again. With SLURM a step that fails cancels those that depend on
it; a preempted or timed-out one is queued again and they keep waiting. Stages that need other resources than the rest
are submitted by themselves first (launch/slurm.py stage1.yaml --nodes 8), then the pipeline joins them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = resources.parse(parser, arguments)
    try:
        return run(options)
    except (AvffError, KeyboardInterrupt) as error:
        print(f"launch/pipeline.py: {describe(error)}", file=sys.stderr)
        return exit_code(error)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="CONFIG|section.key=value",
        help="YAML files of the stages in order, and overrides for all of them",
    )
    parser.add_argument(
        "--evaluate", nargs="+", default=[], metavar="DIR", help="shard directories to score at the end"
    )
    parser.add_argument("--split", default="test", help="of those shards: train, val or test (default: test)")
    parser.add_argument(
        "--executor",
        choices=("slurm", "local"),
        default="slurm",
        help="slurm: a job per step; local: here, one after the other, with launch/torchrun.sh (default: slurm). Locally "
        "--tasks-per-node or --gpus-per-node is the number of processes, and no other resource has a meaning",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would be run or submitted, and do nothing")
    what.add_argument("--status", action="store_true", help="print how far each step has come, and do nothing")
    resources.add_options(parser, cpus_per_task=4, minutes=1440)
    return parser


def run(options: argparse.Namespace) -> int:
    wanted = resources.from_options(options)
    # An option that takes several words also takes the overrides behind it.
    words = [*options.words, *options.evaluate]
    overrides = [word for word in words if "=" in word]
    processes = local_processes(options, wanted) if options.executor == "local" else wanted.num_tasks
    paths = [word for word in options.words if "=" not in word]
    configs = load_configs(paths, overrides, None if options.status else processes)
    steps = plan_steps(configs, [Path(word) for word in options.evaluate if "=" not in word], options.split)
    progress = assess(steps, active_job)
    print(format_table(steps, progress), flush=True)
    for step, one in zip(steps, progress, strict=True):
        if one.state is not State.DONE and (log := last_log(step.folder)):
            print(f"log of {step.name}: {log}")
    if options.status:
        return 0
    refuse_blocked(steps, progress)
    if all(one.state in (State.DONE, State.ACTIVE) for one in progress) and options.executor == "slurm":
        return 0
    for line in missing_shards(configs):
        print(f"note: {line}", file=sys.stderr)
    folder = new_folder(configs)
    if options.executor == "local":
        return _run_here(steps, progress, folder, processes, dry_run=options.dry_run)
    return _submit(steps, progress, folder, wanted, dry_run=options.dry_run)


def local_processes(options: argparse.Namespace, wanted: resources.Resources) -> int | None:
    """Returns how many processes train here; None leaves it to launch/torchrun.sh.

    Raises:
        ConfigError: several nodes.
    """
    if wanted.nodes > 1:
        raise ConfigError(f"--nodes {wanted.nodes}: --executor local is this machine alone; leave one of them out")
    if options.tasks_per_node or options.gpus_per_node:
        return wanted.tasks_per_node
    return int(os.environ.get("PROCESSES", "0")) or None


def load_configs(paths: Sequence[str], overrides: Sequence[str], processes: int | None) -> list[Config]:
    """Reads the stages' configs.

    Args:
        processes: of each training; None where that is not known, or of no interest.

    Raises:
        ConfigError: the problems of all of them.
    """
    if not paths:
        raise ConfigError("no CONFIG; name the stages' YAML files in order")
    configs, problems = [], []
    for path in paths:
        try:
            config = load_config(path, overrides)
            if processes:
                config.accumulation_steps(processes)
            configs.append(config)
        except ConfigError as error:
            problems.append(f"{path}: {error}" if path not in str(error) else str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return configs


def refuse_blocked(steps: Sequence[Step], progress: Sequence[Progress]) -> None:
    """Raises ConfigError where something is there that this pipeline would not have made."""
    blocked = [
        f"{step.output} {one.detail}" for step, one in zip(steps, progress, strict=True) if one.state is State.BLOCKED
    ]
    if blocked:
        raise ConfigError("nothing was started: " + "; ".join(blocked))


def format_table(steps: Sequence[Step], progress: Sequence[Progress]) -> str:
    """Returns a line per step: name, what it makes, state."""
    rows = [("step", "makes", "state")]
    for step, one in zip(steps, progress, strict=True):
        rows.append((step.name, str(step.output), ": ".join(filter(None, (str(one.state), one.detail)))))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {makes:<{widths[1]}}  {state}" for name, makes, state in rows)


def _run_here(
    steps: Sequence[Step], progress: Sequence[Progress], folder: Path, processes: int | None, *, dry_run: bool
) -> int:
    if not dry_run:
        return run_here(steps, progress, folder, processes=processes)
    for step, one in zip(steps, progress, strict=True):
        if one.state is not State.DONE:
            print(command_line(step, folder, processes))
    return 0


def _submit(
    steps: Sequence[Step], progress: Sequence[Progress], folder: Path, wanted: resources.Resources, *, dry_run: bool
) -> int:
    if dry_run:
        print(describe_jobs(steps, progress, wanted, folder))
        return 0
    require_slurm()
    jobs = submit_steps(steps, progress, wanted, folder)
    print("\nsubmitted: " + ", ".join(f"{name} (job {job})" for name, job in jobs.items()))
    print(f"logs: {folder}; watch: squeue --me, or this line with --status")
    print(f"stop all of it: scancel {' '.join(jobs.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
