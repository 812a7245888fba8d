"""What surrounds a job: SLURM's view of it, and wandb's."""

import netrc
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from avff.config import Config
from avff.doctor.check import Check, ok, warn

WANDB_SERVER = "https://api.wandb.ai"
CONNECT_SECONDS = 5.0


def slurm_job(config: Config | None, environment: Mapping[str, str] = os.environ) -> Check:
    """Says how long the job may take, and whether it will come back after a time-out or preemption."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return ok("not in a SLURM job")
    if not shutil.which("scontrol"):
        return ok(f"job {job}; no scontrol on this node to ask about it")
    done = subprocess.run(["scontrol", "show", "job", job, "--oneliner"], capture_output=True, text=True, check=False)
    if done.returncode:
        return warn(f"job {job}: scontrol says {done.stderr.strip()}", "check that this node reaches slurmctld")
    return judge_slurm_job(parse_job(done.stdout), config.engine.time_limit_minutes if config else 0.0)


def parse_job(text: str) -> dict[str, str]:
    """Reads the `Key=value` words of `scontrol show job --oneliner`."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def judge_slurm_job(job: Mapping[str, str], config_minutes: float) -> Check:
    """
    Args:
        config_minutes: `engine.time_limit_minutes`; 0 where the config sets no limit.
    """
    value = f"job {job['JobId']} on partition {job['Partition']}, time limit {job['TimeLimit']}"
    if job.get("BatchFlag") == "1" and job["Requeue"] == "0":
        return warn(f"{value}, not requeued", "submit with --requeue, as launch/slurm.py and launch/sbatch.sh do")
    limit = minutes(job["TimeLimit"])
    if limit is not None and config_minutes > limit:
        return warn(
            f"{value}, shorter than engine.time_limit_minutes={config_minutes:g}, so it would not be saved in time",
            f"engine.time_limit_minutes={limit:g}, or submit with a longer --time",
        )
    return ok(f"{value}, {'requeued' if job['Requeue'] == '1' else 'not requeued'}")


def minutes(text: str) -> float | None:
    """Reads SLURM's `1-02:30:00` or `30:00`; None for `UNLIMITED`."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, full_minutes, seconds = (int(number or 0) for number in match.groups())
    return days * 1440 + hours * 60 + full_minutes + seconds / 60


def wandb(config: Config, environment: Mapping[str, str] = os.environ) -> Check:
    """Says where the curves will go, and whether rank 0 gets there."""
    mode = environment.get("WANDB_MODE", config.logging.wandb)
    if mode in ("disabled", "offline"):
        return ok(f"{mode}; metrics.jsonl holds the curves" + (", tools/sync_wandb.py uploads" * (mode == "offline")))
    server = environment.get("WANDB_BASE_URL", WANDB_SERVER)
    logged_in = bool(environment.get("WANDB_API_KEY")) or _has_login(server, Path.home() / ".netrc")
    if not logged_in and mode == "auto":
        return ok("no login here, so offline; tools/sync_wandb.py uploads later")
    if not logged_in:
        return warn(
            "logging.wandb=online without a login here, so training goes on offline",
            "wandb login, or logging.wandb=auto",
        )
    return judge_reach(server, _connect(server))


def judge_reach(server: str, error: str) -> Check:
    if not error:
        return ok(f"logged in, {server} answers")
    fix = "logging.wandb=offline, and tools/sync_wandb.py later where there is a network"
    return warn(f"logged in, but {server} cannot be reached from here: {error}", fix)


def _has_login(server: str, path: Path) -> bool:
    try:
        return netrc.netrc(path).authenticators(urlsplit(server).hostname or server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _connect(server: str) -> str:
    """Returns why a server cannot be reached, nothing where it can."""
    parts = urlsplit(server)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or server, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return str(error)
    return ""
