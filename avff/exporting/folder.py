"""Model folders: what somebody else needs to run a model, in a folder that a model hub takes as it is.

model.safetensors      weights, LoRA merged, with a JSON sidecar (model.json); `avff.load_model` reads these two
config.yaml            of the network
preprocessing.json     how model inputs are made of a file, for readers without avff
README.md              model card
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from avff.build_config import BuildConfig
from avff.config import IMAGENET_MEAN, IMAGENET_STD, Config, save_config
from avff.errors import CheckpointError
from avff.exporting.card import model_card
from avff.exporting.weights import FOLDER_WEIGHTS, Checkpoint, export_weights
from avff.files import sha256_of, sync
from avff.models.weights import save_weights
from avff.preprocess import POWER_FLOOR
from avff.strict_yaml import from_dict

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


def preprocessing(config: Config, build: dict[str, Any] | None) -> dict[str, Any]:
    """Returns, as plain values, all that decides what the network reads of a file."""
    clip = config.clip
    return {
        "clip": {
            **dataclasses.asdict(clip),
            "duration_seconds": clip.duration_seconds,
            "num_samples": clip.num_samples,
            "num_mel_frames": clip.num_mel_frames,
            "load_size": clip.load_size,
        },
        "video": {
            "input": "video_BTCHW float32: clip, frame, RGB, height, width",
            "frames": "by presentation time at the rate of `build`, then the nearest to every 1 / frames_per_second",
            "resize": f"square to {clip.load_size} and then {clip.image_size} pixels, bilinear, antialiased",
            "scale": 1 / 255,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "audio": {
            "input": "mel_BMF float32: clip, spectrogram frame, mel bin from low to high",
            "sound": f"mono, {clip.sample_rate_hz} Hz, in [-1, 1], from the first frame's time on",
            "frames": "frame m is centred on samples [m * hop, (m + 1) * hop); the ends are mirrored",
            "window": "periodic Hann",
            "filters": "triangles of peak 1 on the HTK mel scale, on power",
            "scale": f"natural log of (power + {POWER_FLOOR})",
            "mean": clip.mel_mean,
            "std": clip.mel_std,
        },
        "build": build,
        "crop": "square about the face box, its side `crop_factor` times the box's longer side, bicubic to side_pixels",
        "windows": "evenly spaced from the first to the last possible start, at most half a clip apart",
    }


def resolved_build(build: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns what a build did, with the values of its profile; None where the checkpoint does not say."""
    if build is None:
        return None
    config = from_dict(BuildConfig, build, where="build")
    lengths = {"segment_seconds": config.segment_seconds, "min_seconds": config.min_seconds}
    return {"mode": config.mode, "profile": config.profile, **dataclasses.asdict(config.video), **lengths}


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    tensors, sidecar = export_weights(checkpoint, "classifier" if config.stage == "finetune" else "full")
    weights = folder / FOLDER_WEIGHTS
    save_weights(weights, tensors, sidecar)
    save_config(config, folder / CONFIG)
    values = preprocessing(config, resolved_build(checkpoint.build))
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
