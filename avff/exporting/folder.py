"""Model folders: what somebody else needs to run a model, in a folder that a model hub takes as it is.

model.safetensors      weights, LoRA merged, with a JSON sidecar (model.json); `avff.load_model` reads these two
config.yaml            of the network
preprocessing.json     how model inputs are made of a file, for readers without avff
README.md              model card
"""

import json
import os
import shutil
from pathlib import Path

from avff.checkpoints import Checkpoint
from avff.config import save_config
from avff.errors import CheckpointError
from avff.exporting.card import model_card
from avff.exporting.inputs import preprocessing
from avff.exporting.weights import export_weights
from avff.files import sha256_of, sync
from avff.models.weights import save_weights
from avff.run_folder import FOLDER_WEIGHTS

CONFIG, PREPROCESSING, CARD = "config.yaml", "preprocessing.json", "README.md"
FILES = frozenset({FOLDER_WEIGHTS, str(Path(FOLDER_WEIGHTS).with_suffix(".json")), CONFIG, PREPROCESSING, CARD})


def write_folder(folder: Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a model folder; it appears whole or not at all.

    Args:
        overwrite: replace a model folder that is there.

    Raises:
        CheckpointError: the folder is there already, or holds anything but a model folder's files.
    """
    folder = Path(folder)
    _check_replaceable(folder, overwrite)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    unfinished.mkdir(parents=True)
    try:
        _write_files(unfinished, checkpoint)
        _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    tensors, sidecar = export_weights(checkpoint, "classifier" if config.stage == "finetune" else "full")
    weights = folder / FOLDER_WEIGHTS
    save_weights(weights, tensors, sidecar)
    save_config(config, folder / CONFIG)
    values = preprocessing(config, checkpoint.build)
    (folder / PREPROCESSING).write_text(json.dumps(values, indent=2) + "\n")
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    card = model_card(checkpoint, sidecar, weights_sha256=sha256_of(weights), num_parameters=num_parameters)
    (folder / CARD).write_text(card)
    for path in (folder / CONFIG, folder / PREPROCESSING, folder / CARD, folder):
        sync(path)


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; give the name of a folder")
    found = {path.name for path in folder.iterdir()}
    if found and not overwrite:
        raise CheckpointError(f"{folder}: is there already; --overwrite replaces it, or give another name")
    if foreign := sorted(found - FILES):
        raise CheckpointError(
            f"{folder}: holds {', '.join(foreign[:5])}, which no model folder does, so it is not replaced; give another name"
        )


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Renames; what was there before is deleted only once the new folder has its name."""
    old = unfinished.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    try:
        unfinished.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
