"""Checkpoints that are committed as real ones are: of a few bytes, or with the weights of a network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from avff import run_folder
from avff.checkpoint_files import commit, list_files
from avff.config import Config, save_config
from avff.models.weights import make_sidecar, save_weights

FILES = ("weights.safetensors", "weights.json", "ema.safetensors", "ema.json", "model/rank-00000.safetensors")


def add_checkpoint(
    run_dir: Path, step: int, value: float | None = None, *, higher_is_better: bool = True, names: Sequence[str] = FILES
) -> Path:
    """Writes and commits `step-N` with the given validation result; the files hold their names."""
    directory = run_folder.checkpoint_dir(run_dir, step)
    unfinished = directory.with_name(directory.name + run_folder.UNFINISHED)
    (unfinished / "model").mkdir(parents=True)
    validation = None if value is None else {"metric": "auc", "value": value, "higher_is_better": higher_is_better}
    (unfinished / run_folder.STATE).write_text(json.dumps({"step": step, "validation": validation}))
    for name in names:
        (unfinished / name).write_bytes(f"{name} of {step}".encode())
    commit(unfinished, directory, list_files(unfinished, [path for path in unfinished.rglob("*") if path.is_file()]))
    return directory


def add_weights(
    config: Config,
    step: int,
    tensors: Mapping[str, Tensor],
    *,
    build: dict[str, Any] | None = None,
    validation: dict[str, Any] | None = None,
    **sidecar: Any,
) -> Path:
    """Writes and commits `step-N` of the config's run with weights, and their average if the run keeps one.

    Args:
        tensors: of both files.
        sidecar: `parents`, `trained_on`, ... of the weight files.
    """
    config.run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, config.run_dir / "config.yaml")
    directory = run_folder.checkpoint_dir(config.run_dir, step)
    unfinished = directory.with_name(directory.name + run_folder.UNFINISHED)
    about = make_sidecar(f"{config.stage} run {config.name!r}", config, build=build, **sidecar)
    for name in (run_folder.WEIGHTS, run_folder.EMA) if config.optim.ema_decay else (run_folder.WEIGHTS,):
        save_weights(unfinished / name, tensors, {**about, "averaged": name == run_folder.EMA})
    state = {"step": step, "build": build, "validation": validation}
    (unfinished / run_folder.STATE).write_text(json.dumps(state))
    commit(unfinished, directory, list_files(unfinished, list(unfinished.iterdir())))
    return directory
