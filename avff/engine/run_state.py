"""What a run remembers between processes: its config, its exit, and which settings may change on the way."""

import json
from pathlib import Path
from typing import Any

from avff import run_folder
from avff.config import Config, load_config, save_config
from avff.errors import ConfigError
from avff.files import write_durably
from avff.strict_yaml import flatten

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
    "data.num_workers",
    "data.prefetch_steps",
    "data.accept_plan",
    "faults.",
    "logging.",
)
"""Keys, or sections ending in a dot, that may differ when a run is continued; every other key is refused."""


def open_run(config: Config) -> None:
    """Makes the run folder, or checks that the config continues the run that is there.

    A folder without a checkpoint holds nothing to continue, such as after a first start with a mistyped path: there
    the config may still change.

    Raises:
        ConfigError: a setting differs that a continued run cannot change; each is named with both values.
    """
    path = config.run_dir / "config.yaml"
    if path.is_file() and run_folder.committed_steps(config.run_dir):
        differences = _forbidden_changes(load_config(path), config)
        if differences:
            raise ConfigError(
                f"{config.run_dir} was started with another config:\n"
                + "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in differences)
                + "\nUse the old values, or a new `name` for a new run."
            )
    config.run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, path)
    (config.run_dir / EXIT).unlink(missing_ok=True)  # of the process before: this one has not ended yet


def _forbidden_changes(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    before, after = flatten(old), flatten(new)
    return [(key, before[key], after[key]) for key in after if before[key] != after[key] and not _may_change(key)]


def _may_change(key: str) -> bool:
    return any(key == allowed or (allowed.endswith(".") and key.startswith(allowed)) for allowed in MAY_CHANGE)


def write_exit(run_dir: Path, *, reason: str, code: int, step: int) -> None:
    """Writes exit.json, which launchers read: torchrun hides the code of its ranks."""
    content = json.dumps({"reason": reason, "code": code, "step": step}) + "\n"
    write_durably(run_dir / EXIT, content.encode())
