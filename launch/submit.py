"""Commands -> one SLURM job or job array, through submitit."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avff.config import Config, save_config
from avff.errors import ConfigError
from avff.files import write_durably
from avff.launched import EXIT_CODE_FILE
from launch.resources import Resources
from launch.task import JOB_END, Task

JOB = "job.json"
"""In a run folder: which job trains it, and where that job's logs are."""


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


def train_command(config: Config, folder: Path) -> Command:
    """Returns the training of a resolved config, which will be saved in the job's folder: later edits do not reach it."""
    argv = ("-m", "avff", "train", str(_config_path(config, folder)))
    return Command(argv, config.run_dir, config.name, config)


def submit(
    commands: Sequence[Command],
    resources: Resources,
    *,
    folder: Path,
    snapshot: Path,
    after: Sequence[str] = (),
    array_parallelism: int = 256,
) -> list[str]:
    """Submits one job, or one array where there are several commands.

    Args:
        folder: for the script, the logs and the ends of the job; shared by all nodes.
        snapshot: the code that runs, see `take_snapshot`.
        after: job ids that have to succeed first; where one fails, this job is cancelled.
        array_parallelism: most jobs of an array that run at once.

    Returns:
        A job id per command: `123`, or `123_0`, `123_1`, ... in an array.

    Raises:
        ConfigError: there is no SLURM here, or it refuses the job.
    """
    require_slurm()
    import submitit

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for command in commands:
        if command.config:
            save_config(command.config, _config_path(command.config, folder))
    executor = submitit.SlurmExecutor(folder, python=_python(resources))
    executor.update_parameters(**_parameters(commands, resources, folder, snapshot, after, array_parallelism))
    tasks = [_task(command, resources) for command in commands]
    try:
        with _outside_of_any_job():
            jobs = executor.submit_array(tasks)
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(f"sbatch refused the job: {error}") from error
    for command, job in zip(commands, jobs, strict=True):
        if command.run_dir:
            record_job(command.run_dir, job.job_id, folder)
    return [job.job_id for job in jobs]


def describe(
    commands: Sequence[Command],
    resources: Resources,
    *,
    folder: Path,
    snapshot: Path,
    after: Sequence[str] = (),
    array_parallelism: int = 256,
) -> str:
    """Returns the very script that `submit` would hand to sbatch, and what its tasks run."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = folder.resolve()
    parameters = _parameters(commands, resources, folder, snapshot, after, array_parallelism)
    if len(commands) > 1:
        parameters["map_count"] = len(commands)
    script = _make_sbatch_string(f"{_python(resources)} -u -m submitit.core._submit {folder}", folder, **parameters)
    tasks = "task" if resources.num_tasks == 1 else f"each of {resources.num_tasks} tasks"
    lines = [f"# {tasks} of {_job_of(index, commands)} runs in {Path.cwd()}:\n{_words(command, resources)}"
             for index, command in enumerate(commands)]  # fmt: skip
    return "\n".join([script, *lines])


def active_job(run_dir: Path) -> str | None:
    """Returns the job that trains, or will train, into a run folder, if SLURM still has it."""
    path = run_dir / JOB
    if not path.is_file() or shutil.which("squeue") is None:
        return None
    job = json.loads(path.read_text())["job_id"]
    return job if is_active(job) else None


def is_active(job: str) -> bool:
    """Returns whether a job waits or runs, or is going to again.

    Raises:
        ConfigError: SLURM does not answer.
    """
    states = "PENDING,CONFIGURING,RUNNING,COMPLETING,SUSPENDED,REQUEUED,REQUEUE_HOLD,REQUEUE_FED,RESIZING,STOPPED"
    command = ["squeue", "--noheader", "--jobs", job, "--states", states, "--format", "%T"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        raise ConfigError(f"SLURM does not say whether job {job} runs: {asked.stderr.strip()}")
    return bool(asked.stdout.strip())


def log_path(folder: Path, job: str, task: int = 0) -> Path:
    """Returns where a task of a job writes; task 0's file has the batch script's lines as well."""
    return folder.resolve() / f"{job}_{task}_log.out"


def last_log(run_dir: Path) -> Path | None:
    """Returns where the newest job of a folder wrote; None where none was submitted, or none came to run."""
    path = run_dir / JOB
    record = json.loads(path.read_text()) if path.is_file() else None
    log = log_path(Path(record["folder"]), record["job_id"]) if record else None
    return log if log and log.is_file() else None


def require_slurm() -> None:
    """Raises ConfigError in one line where no job can be submitted: what is missing, and what to use instead."""
    instead = "without SLURM train with launch/torchrun.sh CONFIG, or launch/pipeline.py --executor local"
    missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise ConfigError(f"no SLURM here: {', '.join(missing)} not found on the PATH; {instead}")
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"submitit is not installed: pip install 'submitit>=1.5'; {instead}") from error


# ------------------------------------------------------------------------------------------- the script


def _parameters(
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
    runs = [shlex.quote(str(command.run_dir)) for command in commands if command.run_dir]
    if len(commands) == 1 or not runs:
        return [" ".join([decide, "$? $JOB", folder_word, *runs])]
    return [f"code=$? runs=({' '.join(runs)})", f'{decide} $code $JOB {folder_word} "${{runs[$SLURM_ARRAY_TASK_ID]}}"']


def _split_option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.removeprefix("--").partition("=")
    return name, value if equals else True


def _python(resources: Resources) -> str:
    """Returns the shell words that start python in a task; a container's stand before it, behind srun's own options."""
    return " ".join(filter(None, [resources.container, shlex.quote(resources.python or sys.executable)]))


def _task(command: Command, resources: Resources) -> Task:
    return Task(
        command.argv,
        is_training=command.run_dir is not None,
        time_limit_minutes=command.config.engine.time_limit_minutes if command.config else 0.0,
        signal_seconds=resources.signal_seconds,
    )


def _words(command: Command, resources: Resources) -> str:
    limits = _task(command, resources).limits("", 0.0)
    if command.run_dir:
        limits = [*limits[:1], "engine.time_limit_minutes=<what SLURM leaves the job>"]
    return shlex.join([resources.python or sys.executable, "-P", *command.argv]) + "".join(
        f" {word}" for word in limits
    )


def _job_of(index: int, commands: Sequence[Command]) -> str:
    return f"array element {index}" if len(commands) > 1 else "the job"


# ------------------------------------------------------------------------------------------- the submission


def _config_path(config: Config, folder: Path) -> Path:
    return folder.resolve() / f"{config.name}.yaml"


def record_job(run_dir: Path, job_id: str, folder: Path) -> None:
    """Writes job.json, which `active_job` reads.

    Args:
        folder: of the job's script and logs.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    record = {"job_id": job_id, "folder": str(folder), "command": shlex.join(sys.argv), "submitted_unix": time.time()}
    write_durably(run_dir / JOB, (json.dumps(record, indent=1) + "\n").encode())


@contextlib.contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """Hides the variables of the job that this process runs in, which sbatch would take for options of the new one."""
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        ours = [name for name in os.environ if name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_"))]
        hidden = {name: os.environ.pop(name) for name in ours if name != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(hidden)
