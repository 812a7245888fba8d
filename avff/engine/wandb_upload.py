"""Sends a run's merged fragments to wandb's server, each state of them once."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from avff.engine.wandb_fragments import FOLDER, MergedRun
from avff.engine.wandb_service import can_log_in, failures
from avff.errors import CheckpointError
from avff.files import write_durably
from avff.run_lock import holder

logger = logging.getLogger(__name__)

UPLOADED = "uploaded.json"
"""Beside the fragments: digest of what the server has, and how many alerts it was sent."""

SYNC_SECONDS = 3600.0
"""Far more than a run's numbers and panels take; `wandb sync` itself waits without an end for a server that is silent."""

Outcome = Literal["uploaded", "up to date", "merged"]


def upload(merged: MergedRun) -> tuple[Outcome, Path | None]:
    """Writes the merged run and sends it under its id, unless the server has it already.

    What the server has of the run is replaced, so that a row it got before is not there twice. Alerts are sent once.

    Returns:
        what was done, and where the merged run lies. `merged`: written, but this machine has no login.

    Raises:
        CheckpointError: the run is being sent by its own training right now, or the upload failed.
    """
    digest, sent = digest_of(merged), _read(merged.run_dir)
    alerts = merged.alerts[sent["num_alerts"] :]
    if sent["sha256"] == digest and not alerts:
        return "up to date", None
    _refuse_a_live_run(merged)
    directory = merged.write(alerts)
    if not _is_logged_in():
        return "merged", directory
    _sync(merged, directory)
    record = {"sha256": digest, "num_alerts": len(merged.alerts)}
    write_durably(merged.run_dir / FOLDER / UPLOADED, (json.dumps(record) + "\n").encode())
    return "uploaded", directory


def digest_of(merged: MergedRun) -> str:
    return hashlib.sha256(merged.content(alerts=[])).hexdigest()


def is_uploaded(merged: MergedRun) -> bool:
    """Whether the server has all of it."""
    sent = _read(merged.run_dir)
    return sent["sha256"] == digest_of(merged) and sent["num_alerts"] == len(merged.alerts)


def _read(run_dir: Path) -> dict[str, Any]:
    path = run_dir / FOLDER / UPLOADED
    return json.loads(path.read_text()) if path.is_file() else {"sha256": "", "num_alerts": 0}


def _refuse_a_live_run(merged: MergedRun) -> None:
    trainer = holder(merged.run_dir)
    if trainer and merged.fragments[-1].was_sent:
        raise CheckpointError(
            f"{merged.run_dir}: {trainer['host']} (process {trainer['pid']}) trains it and sends it to wandb itself; "
            "sync it when that has ended"
        )


def _is_logged_in() -> bool:
    try:
        return can_log_in()
    except failures() as error:
        logger.warning("wandb's server does not answer, or refuses the login: %s", error)
        return False


def _sync(merged: MergedRun, directory: Path) -> None:
    """wandb tells success by a file beside the one that it sent, and not by its exit code alone."""
    environment = {**os.environ, "WANDB_DIR": str(merged.run_dir)}  # for its logs; else ./wandb
    if not merged.has_ended:
        # A run that goes on, or waits for its next start, has not failed.
        environment["WANDB_X_UPDATE_FINISH_STATE"] = "false"
    command = [sys.executable, "-m", "wandb", "sync", str(directory)]
    try:
        done = subprocess.run(command, check=False, env=environment, timeout=SYNC_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"{directory}: `wandb sync` was not done after {SYNC_SECONDS:g} s; the same command tries again"
        ) from error
    if done.returncode or not (directory / f"run-{merged.id}.wandb.synced").is_file():
        raise CheckpointError(
            f"{directory}: `wandb sync` did not get it to the server (code {done.returncode}, see above); "
            "the same command tries again"
        )
