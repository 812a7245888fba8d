"""The batch script of a job, in submitit's words: what stands before srun, in it, and after it."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avff.config import Config
from avff.launched import EXIT_CODE_FILE
from launch.resources import Resources
from launch.task import JOB_END, Task


@dataclass(frozen=True)
class Command:
    """What every task of a job runs.

    Attributes:
        argv: words after `python -P`.
        run_dir: run folder of a training, which holds job.json and exit.json; None for anything else.
        name: what the queue shows.
        config: of a training; saved into the job's folder when it is submitted, where `argv` names it.
    """

    argv: tuple[str, ...]
    run_dir: Path | None
    name: str
    config: Config | None = None


def config_path(config: Config, folder: Path) -> Path:
    """Returns where a job's folder holds the resolved config of a run; runs of one name have different run folders."""
    run = hashlib.sha256(str(config.run_dir).encode()).hexdigest()[:8]
    return folder.resolve() / f"{config.name}-{run}.yaml"


def parameters(
    commands: Sequence[Command],
    resources: Resources,
    folder: Path,
    snapshot: Path,
    after: Sequence[str],
    array_parallelism: int,
) -> dict[str, Any]:
    """Returns submitit's words for what is asked for; it leaves out those that are None."""
    more = dict(_split_option(text) for text in resources.sbatch)
    if after:
        more |= {"dependency": "afterok:" + ":".join(after), "kill-on-invalid-dep": "yes"}
    return {
        "job_name": commands[0].name + (f"+{len(commands) - 1}" if len(commands) > 1 else ""),
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "gpus_per_node": resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "mem": f"{resources.memory_gb}GB" if resources.memory_gb else None,
        "exclusive": resources.exclusive or None,
        "time": resources.minutes,
        "signal_delay_s": resources.signal_seconds,
        "partition": resources.partition or None,
        "account": resources.account or None,
        "qos": resources.qos or None,
        "constraint": resources.constraint or None,
        "exclude": resources.exclude or None,
        "wckey": None,
        "array_parallelism": array_parallelism,
        "additional_parameters": {"requeue": True, **more},
        "stderr_to_stdout": True,
        # A rank that is lost ends the others at once; and srun does not take over how many cores a task has.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_task}"],
        "setup": _setup(resources, folder, snapshot),
        "teardown": _teardown(commands, folder),
    }


def _setup(resources: Resources, folder: Path, snapshot: Path) -> list[str]:
    """What the batch script does before srun; tasks inherit its variables."""
    codes = f"{shlex.quote(str(folder))}/${{JOB}}_start${{SLURM_RESTART_COUNT:-0}}.codes"
    return [
        *resources.setup,
        f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "JOB=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        f"export {JOB_END}=$(squeue --noheader --jobs $JOB --format %e | xargs --no-run-if-empty date +%s --date)",
        f"export {EXIT_CODE_FILE}={codes}",
    ]


def _teardown(commands: Sequence[Command], folder: Path) -> list[str]:
    """What the batch script does after srun: decide whether the job starts again."""
    decide = f"{shlex.quote(sys.executable)} -m launch.requeue"
    folder_word = shlex.quote(str(folder))
    runs = [shlex.quote(str(command.run_dir or "")) for command in commands]
    if len(commands) == 1:
        return [" ".join([decide, "$? $JOB", folder_word, *runs])]
    return [f"code=$? runs=({' '.join(runs)})", f'{decide} $code $JOB {folder_word} "${{runs[$SLURM_ARRAY_TASK_ID]}}"']


def _split_option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.removeprefix("--").partition("=")
    return name, value if equals else True


def python_words(resources: Resources) -> str:
    """Returns the shell words that start python in a task; a container's stand before it, behind srun's own options."""
    return " ".join(filter(None, [resources.container, shlex.quote(resources.python or sys.executable)]))


def task_of(command: Command, resources: Resources) -> Task:
    return Task(
        command.argv,
        is_training=command.run_dir is not None,
        time_limit_minutes=command.config.engine.time_limit_minutes if command.config else 0.0,
        signal_seconds=resources.signal_seconds,
    )


def command_line(command: Command, resources: Resources) -> str:
    """Returns what a task becomes, for people to read."""
    limits = task_of(command, resources).limits("", 0.0)
    if command.run_dir:
        limits = [*limits[:1], "engine.time_limit_minutes=<what SLURM leaves the job>"]
    python = resources.python or sys.executable
    return " ".join([shlex.join([python, "-P", *command.argv]), *limits])
