"""Checkpoints of a few bytes that are committed as real ones are."""

import json
from collections.abc import Sequence
from pathlib import Path

from avff import run_folder
from avff.checkpoint_files import commit, list_files

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
