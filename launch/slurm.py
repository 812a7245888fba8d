#!/usr/bin/env python
"""Trains on a SLURM cluster: one job per config, several configs or a sweep as one array."""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avff.config import Config
from avff.errors import AvffError, ConfigError, describe, exit_code
from avff.run_folder import committed_steps
from avff.run_lock import holder
from launch import resources, submit
from launch.requeue import ends_path
from launch.resources import Resources
from launch.snapshot import snapshot_folder, take_snapshot
from launch.submit import Command, active_job, require_slurm, train_command
from launch.sweep import plan_runs

BEAT_SECONDS = 2.0
"""Between questions to SLURM."""

PATIENCE_SECONDS = 60.0
"""How long a controller that is too busy to answer is asked again."""

EPILOG = """\
examples:
  python launch/slurm.py configs/stage1_kinetics.yaml --nodes 8 --gpus-per-node 8 --cpus-per-task 12 --minutes 1440
  python launch/slurm.py configs/stage1_kinetics.yaml --nodes 8 --gpus-per-node 8 --dry-run      what would be submitted
  python launch/slurm.py configs/stage1_kinetics.yaml --nodes 8 --gpus-per-node 8 --doctor       are the nodes fit for it
  python launch/slurm.py configs/stage1_kinetics.yaml --sweep optim.learning_rate=1e-4,3e-4 --sweep seed=0,1
  python launch/slurm.py configs/stage1_kinetics.yaml --nodes 2 --partition gpu --account speech name=try optim.num_steps=500

A job that is preempted, reaches its time limit, or loses a node or a rank is queued again by itself and goes on in the
same run folder; one that is finished, refused its config, stopped itself, or crashes again and again is not. The same
line after a cancelled job goes on as well, also on fewer nodes. The code is copied first, to runs/code: edit on.
Files of the config are found from where you submit; all nodes have to see them, and the run folders.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or an error's code (avff.errors.exit_code); with --doctor that of `avff doctor`."""
    try:
        return run(parse(arguments))
    except (AvffError, KeyboardInterrupt) as error:
        print(f"launch/slurm.py: {describe(error)}", file=sys.stderr)
        return exit_code(error)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "words", nargs="+", metavar="CONFIG|section.key=value", help="YAML files, and overrides for all"
    )
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B", help="a run per value; may be repeated"
    )
    parser.add_argument("--at-once", type=int, default=256, metavar="N", help="most runs of an array that run at once")
    parser.add_argument("--dry-run", action="store_true", help="print script and environment, submit nothing")
    parser.add_argument(
        "--doctor", action="store_true", help="run `avff doctor` on such nodes and wait for what it says"
    )
    resources.add_options(parser, cpus_per_task=4, minutes=1440)
    return resources.parse(parser, arguments)


def run(options: argparse.Namespace) -> int:
    """Checks everything that can be checked here, then submits."""
    if not options.dry_run:
        require_slurm()
    asked = resources.from_options(options)
    overrides = [word for word in options.words if "=" in word]
    paths = [Path(word) for word in options.words if "=" not in word]
    if not paths:
        raise ConfigError("no CONFIG given; the files are in configs/")
    configs = plan_runs(paths, overrides, options.sweep, asked.num_tasks)
    runs_dir = Path(configs[0].runs_dir)
    folder = runs_dir / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{configs[0].name}"
    if options.doctor:
        words = (str(paths[0]), *overrides, f"engine.grace_seconds={asked.signal_seconds}")
        commands = [Command(("-m", "avff", "doctor", *words), None, f"doctor-{configs[0].name}")]
    else:
        configs = startable(configs)
        commands = [train_command(config, folder) for config in configs]
    if not commands:
        return 0
    if options.dry_run:
        return show(commands, asked, folder, snapshot_folder(runs_dir), options.at_once)
    snapshot = take_snapshot(runs_dir)
    jobs = submit.submit(commands, asked, folder=folder, snapshot=snapshot, array_parallelism=options.at_once)
    return wait_for(jobs[0], folder) if options.doctor else report(jobs, configs, folder)


def startable(configs: Sequence[Config]) -> list[Config]:
    """Returns the configs whose runs have steps left: the line of a sweep submits the rest of it.

    Raises:
        ConfigError: a run folder is in use, or holds a run that another config cannot continue.
    """
    left = [config for config in configs if config.optim.num_steps not in committed_steps(config.run_dir)]
    problems = [sentence for config in left if (sentence := user_of(config.run_dir))]
    problems += [sentence for config in configs for sentence in changes(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    for config in configs:
        if config not in left:
            print(f"{config.run_dir}: finished at step {config.optim.num_steps}, nothing to do")
    note_missing_shards(left)
    return left


def user_of(run_dir: Path) -> str:
    """Returns who uses a run folder, as a sentence; empty where nobody does."""
    if job := active_job(run_dir):
        return f"{run_dir}: job {job} trains here already; scancel {job}, or give another `name`"
    if who := holder(run_dir):
        return f"{run_dir}: process {who['pid']} on {who['host']} trains here; stop it, or give another `name`"
    return ""


def changes(config: Config) -> list[str]:
    """Returns a sentence for each setting with which the run that is there, finished or not, cannot go on."""
    if not committed_steps(config.run_dir):
        return []
    from avff.engine.run_state import forbidden_changes  # imports torch, which takes seconds

    return [
        f"{config.run_dir}: was started with {key}={old!r}, not {new!r}; use the old value or another `name`"
        for key, old, new in forbidden_changes(config)
    ]


def note_missing_shards(configs: Sequence[Config]) -> None:
    sources = {source.path for config in configs for source in (*config.data.train, *config.data.validation)}
    for path in sorted(path for path in sources if not Path(path).is_dir()):
        print(f"note: {path} is not there as seen from here; the nodes have to see it", file=sys.stderr)


def show(commands: Sequence[Command], asked: Resources, folder: Path, snapshot: Path, at_once: int) -> int:
    """Prints what would be submitted, and what SLURM says to it where there is one."""
    text = submit.describe(commands, asked, folder=folder, snapshot=snapshot, array_parallelism=at_once)
    print(text)
    for command in commands:
        print(f"# run folder {command.run_dir}" if command.run_dir else f"# no run folder: {command.name}")
    try:
        require_slurm()
    except ConfigError as error:
        print(f"# {error}")
        return 0
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(text)
        script.flush()
        said = subprocess.run(["sbatch", "--test-only", script.name], capture_output=True, text=True, check=False)
    print(f"# SLURM says: {said.stderr.strip()}")
    return 2 if said.returncode else 0


def report(jobs: Sequence[str], configs: Sequence[Config], folder: Path) -> int:
    """Prints what was submitted, how to watch it and how to end it; returns 0."""
    job = jobs[0].partition("_")[0]
    for number, config in zip(jobs, configs, strict=True):
        print(f"job {number}: {config.run_dir}")
    print(f"queue    squeue --jobs {job}")
    print(f"log      tail -F {submit.log_path(folder, jobs[0])}")
    print(f"curves   avff report {shlex.join(str(config.run_dir) for config in configs)}")
    print(f"end      scancel {job}        (training saves first, if KillWait allows; the same command goes on)")
    return 0


def wait_for(job: str, folder: Path) -> int:
    """Follows the log of a job until it has ended; returns its code, 1 where it did not get to say one."""
    log, ends = submit.log_path(folder, job), ends_path(folder, job)
    print(f"job {job} waits for its nodes; Ctrl-C leaves it in the queue, its log is {log}", file=sys.stderr)
    num_shown, is_over, answered = 0, False, time.monotonic()
    while not is_over:
        time.sleep(BEAT_SECONDS)
        try:
            is_over, answered = not submit.is_active(job), time.monotonic()
        except ConfigError:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
        text = log.read_text() if log.is_file() else ""
        complete = text if is_over else text[: text.rfind("\n") + 1]
        for line in complete[num_shown:].splitlines():
            if not line.startswith("submitit "):
                print(line, flush=True)
        num_shown = len(complete)
    return json.loads(ends.read_text().splitlines()[-1])["code"] if ends.is_file() else 1


if __name__ == "__main__":
    sys.exit(main())
