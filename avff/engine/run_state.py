"""What a run remembers between processes: its config, its end, and which settings may change on the way."""

import json
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from avff import run_folder
from avff.config import Config, load_config, save_config
from avff.engine import decisions, starts
from avff.errors import PREEMPTED_EXIT_CODE, ConfigError
from avff.files import durable, sync, write_durably
from avff.strict_yaml import flatten

logger = logging.getLogger(__name__)

EXIT = "exit.json"

MAY_CHANGE = (
    # Where and on what the run executes; none of it changes what is computed.
    "runs_dir",
    "engine.micro_batch_size",
    "engine.zero_stage",
    "engine.num_threads",
    "engine.checkpoint_every_steps",
    "engine.keep_checkpoints",
    "engine.keep_every_steps",
    "engine.overlap_saving",
    "engine.time_limit_minutes",
    "engine.grace_seconds",
    "model.activation_checkpointing",
    "data.train",  # their shards are compared by content (avff.engine.plan_record), so that folders may move
    "data.validation",
    "data.num_workers",
    "data.prefetch_steps",
    "data.accept_plan",
    "faults.",
    "logging.",
)
"""Keys, or sections ending in a dot, that may differ when a run is continued; every other key is refused."""


def open_run(config: Config) -> Config:
    """Makes the run folder, or checks that the config continues the run that is there, and records the start.

    A folder without a checkpoint holds nothing to continue, such as after a first start with a mistyped path: there
    the config may still change.

    Returns:
        The config, with the run's own decoder where it leaves the choice.

    Raises:
        ConfigError: a setting differs that a continued run cannot change; each is named with both values.
        TrainingError: too many starts in a row crashed without a new checkpoint.
    """
    differences = forbidden_changes(config)
    if run_folder.committed_steps(config.run_dir):
        config = _with_decoder_of_run(config)
    if differences:
        if run_folder.committed_steps(config.run_dir):
            raise ConfigError(
                f"{config.run_dir} was started with another config:\n"
                + "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in differences)
                + "\nUse the old values, or a new `name` for a new run."
            )
        (config.run_dir / decisions.FILE).unlink(missing_ok=True)  # what another config met with
    config.run_dir.mkdir(parents=True, exist_ok=True)
    starts.record_start(config, read_exit(config.run_dir))
    store_config(config)
    (config.run_dir / EXIT).unlink(missing_ok=True)  # of the process before: this one has not ended yet
    return config


def store_config(config: Config) -> None:
    """Writes the run's config.yaml."""
    with durable(config.run_dir / "config.yaml") as temporary:
        save_config(config, temporary)


def _with_decoder_of_run(config: Config) -> Config:
    path = config.run_dir / "config.yaml"
    if config.data.decoder != "auto" or not path.is_file():
        return config
    return replace(config, data=replace(config.data, decoder=load_config(path).data.decoder))


def forbidden_changes(config: Config) -> list[tuple[str, Any, Any]]:
    """Returns key, value there and value now of each setting that a run which is continued cannot change."""
    path = config.run_dir / "config.yaml"
    if not path.is_file():
        return []
    before, after = flatten(load_config(path)), flatten(config)
    changed = [key for key in after if before[key] != after[key] and not _may_change(key)]
    return [(key, before[key], after[key]) for key in changed if not _is_open(key, before[key], after[key])]


def _is_open(key: str, before: Any, after: Any) -> bool:
    """Whether a config leaves to the run what another one says; the choice that a run made is in its own."""
    return key == "data.decoder" and "auto" in (before, after)


def _may_change(key: str) -> bool:
    return any(key == allowed or (allowed.endswith(".") and key.startswith(allowed)) for allowed in MAY_CHANGE)


def write_exit(run_dir: Path, *, reason: str, code: int, step: int, rank: int = 0) -> None:
    """Writes exit.json, which launchers read: torchrun hides the code of its ranks.

    Any rank that fails writes it, and the first to do so keeps it: when one rank fails, the others soon lose their
    connection to it, and theirs is not the reason that helps. A clean end (rank 0's) replaces what is there. A disk
    that takes no file is logged and changes nothing about how the process ends.
    """
    record = {"reason": reason, "code": code, "step": step, "rank": rank, "host": socket.gethostname()}
    content = (json.dumps(record) + "\n").encode()
    try:
        if code in (0, PREEMPTED_EXIT_CODE):
            write_durably(run_dir / EXIT, content)
        else:
            _write_first(run_dir / EXIT, content)
    except OSError as error:
        logger.critical("%s: could not be written: %s; it was to say: %s", run_dir / EXIT, error, record)


def _write_first(path: Path, content: bytes) -> None:
    """Writes a file durably unless there is one already; of several writers at once the first wins."""
    complete = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    write_durably(complete, content)
    try:
        os.link(complete, path)
    except FileExistsError:
        return
    finally:
        complete.unlink()
    sync(path.parent)


def read_exit(run_dir: Path) -> dict[str, Any] | None:
    """Returns how the last process ended; None where it did not get to say so, or nothing was started yet."""
    path = run_dir / EXIT
    return json.loads(path.read_text()) if path.is_file() else None
