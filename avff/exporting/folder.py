"""Model folders: what somebody else needs to run a model, in a folder that a model hub takes as it is.

model.safetensors      weights, LoRA merged, with a JSON sidecar (model.json); `avff.load_model` reads these two
config.yaml            of the network
preprocessing.json     how model inputs are made of a file, for readers without avff
README.md              model card
"""

import json
import logging
import os
import re
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

log = logging.getLogger(__name__)

CONFIG, PREPROCESSING, CARD = "config.yaml", "preprocessing.json", "README.md"
OF_A_CLONE = frozenset({".git", ".gitattributes"})
"""What a hub's clone of a model folder holds besides; replacing the folder leaves it as it is."""
PARTIAL, OLD = ".partial", ".old"
"""End the names of what is written, and of what is replaced, while that lasts: `.detector.1234.old`."""
FILES = frozenset({FOLDER_WEIGHTS, str(Path(FOLDER_WEIGHTS).with_suffix(".json")), CONFIG, PREPROCESSING, CARD})


def write_folder(folder: Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a model folder; it appears whole or not at all.

    What a call that was killed left beside it is tidied up first: an old folder that had just lost its name gets it back.

    Args:
        overwrite: replace the files of a model folder that is there; a clone's `.git` stays.

    Raises:
        CheckpointError: the folder is there already, or holds anything but a model folder's files.
    """
    folder = Path(folder)
    _recover(folder)
    _check_replaceable(folder, overwrite)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}")
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
    if foreign := sorted(found - FILES - OF_A_CLONE):
        raise CheckpointError(
            f"{folder}: holds {', '.join(foreign[:5])}, which no model folder does, so it is not replaced; give another name"
        )


def _recover(folder: Path) -> None:
    """Undoes what processes that were killed left half done; those that still run are left alone."""
    for path in sorted(folder.parent.glob(f".{folder.name}.*")):
        match = re.fullmatch(rf"\.{re.escape(folder.name)}\.(\d+)({PARTIAL}|{OLD})", path.name)
        if match is None or _is_running(int(match[1])):
            continue
        if match[2] == OLD and not folder.exists():
            path.rename(folder)
            log.warning("%s: given its name back; a process that was replacing it was killed", folder)
            continue
        if match[2] == OLD:
            _take_over_clone(path, folder)
        shutil.rmtree(path)
        log.warning("%s: removed, left behind by a process that was killed", path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return process != os.getpid()


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Renames; what was there before is deleted only once the new folder has its name."""
    old = unfinished.with_suffix(OLD)
    if folder.exists():
        folder.rename(old)
    try:
        unfinished.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    if old.exists():
        _take_over_clone(old, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _take_over_clone(old: Path, folder: Path) -> None:
    """Moves what a hub's clone holds besides the model's files into the folder that took its place."""
    for name in OF_A_CLONE:
        if (old / name).exists() and not (folder / name).exists():
            (old / name).rename(folder / name)
