"""Commands -> one SLURM job or job array, through submitit."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from avff.config import Config, save_config
from avff.errors import ConfigError
from avff.files import write_durably
from launch.resources import Resources
from launch.script import Command, command_line, config_path, parameters, python_words, task_of

JOB = "job.json"
"""In a run folder: which job trains it, and where that job's logs are."""

SECRET = re.compile(r"""(\b\w*(?:KEY|TOKEN|SECRET|PASSWORD)\w*=)('[^']*'|"[^"]*"|\S+)""")
"""A shell variable, as a --setup line exports it, whose value is nobody else's business."""

UNCONFIGURED = "Could not establish a configuration source"
"""What SLURM's programs say where they are installed and no cluster is."""


def train_command(config: Config, folder: Path) -> Command:
    """Returns the training of a resolved config, which will be saved in the job's folder: later edits do not reach it."""
    argv = ("-m", "avff", "train", str(config_path(config, folder)))
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
            save_config(command.config, config_path(command.config, folder))
    executor = submitit.SlurmExecutor(folder, python=python_words(resources))
    executor.update_parameters(**parameters(commands, resources, folder, snapshot, after, array_parallelism))
    tasks = [task_of(command, resources) for command in commands]
    try:
        with _outside_of_any_job(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints the error, too
            jobs = executor.submit_array(tasks)
        for script in folder.glob("*_submission.sh"):
            script.chmod(0o600)  # --setup lines may hold keys
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(f"{error}\nsbatch refused the job; partitions here are {_partitions()}") from error
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
    words = parameters(commands, resources, folder, snapshot, after, array_parallelism)
    if len(commands) > 1:
        words["map_count"] = len(commands)
    command = f"{python_words(resources)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    script = _make_sbatch_string(command, folder, **words)
    tasks = "task" if resources.num_tasks == 1 else f"each of {resources.num_tasks} tasks"
    lines = [f"# {tasks} of {_job_of(index, commands)} runs in {Path.cwd()}:\n{command_line(command, resources)}"
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
    if UNCONFIGURED in asked.stderr:
        return False
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
    asked = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    if UNCONFIGURED in asked.stderr:
        raise ConfigError(f"no SLURM here: its programs are, but no slurm.conf that names a cluster; {instead}")
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"submitit is not installed: pip install 'submitit>=1.5'; {instead}") from error


def _job_of(index: int, commands: Sequence[Command]) -> str:
    return f"array element {index}" if len(commands) > 1 else "the job"


def _partitions() -> str:
    asked = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True, check=False)
    return ", ".join(asked.stdout.split()) or "unknown"


def record_job(run_dir: Path, job_id: str, folder: Path) -> None:
    """Writes job.json, which `active_job` reads.

    Args:
        folder: of the job's script and logs.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    command = shlex.join(SECRET.sub(r"\1***", word) for word in sys.argv)
    record = {"job_id": job_id, "folder": str(folder), "command": command, "submitted_unix": time.time()}
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
