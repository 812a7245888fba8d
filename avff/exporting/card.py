"""The model card of a model folder: README.md in the form that the Hugging Face Hub reads."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from avff import __version__
from avff.build_config import BuildConfig
from avff.checkpoints import Checkpoint
from avff.errors import CheckpointError
from avff.run_folder import FOLDER_WEIGHTS
from avff.strict_yaml import from_dict

METRICS = {
    "auc": "AUC",
    "ap_fake": "average precision of fakes",
    "eer": "equal error rate",
    "balanced_accuracy": "balanced accuracy at the threshold",
    "tpr_at_1_percent_fpr": "share of fakes found at 1 % false alarms",
    "ece": "calibration error",
}
"""Names in a summary of `avff evaluate`, and what the card calls them."""

USAGE = """\
import avff
model = avff.load_model("{folder}")
print(model.predict("face_crop.mp4"))  # or model.predict("clip.mp4", box=(x0, y0, x1, y1)) in pixels
"""
CLASSIFIER_LIMITS = """\
- It judges windows of {seconds:g} s with {crop}, and needs picture and sound; shorter or silent files are refused.
- Its probability is not calibrated, and other people, languages, codecs, resolutions and forging methods than those
  of training change it; measure on your own material before you rely on a threshold.
- A verdict is a hint for people who look further, not evidence on its own.
"""
NETWORK_LIMITS = """\
- It is a pretrained network without real/fake heads: it scores nothing until it is finetuned
  (`tools/adapt_weights.py`, then `avff train` with `stage: finetune`).
- It saw clips of {seconds:g} s with {crop}.
"""


def model_card(checkpoint: Checkpoint, sidecar: Mapping[str, Any], *, weights_sha256: str, num_parameters: int) -> str:
    """Returns the card's text.

    Args:
        sidecar: of the weight file in the folder.
        weights_sha256: of that file.
        num_parameters: numbers that it holds.
    """
    is_classifier = checkpoint.config.stage == "finetune"
    sections = [
        "---\n" + yaml.safe_dump(_front_matter(checkpoint, sidecar), sort_keys=False) + "---",
        f"# {checkpoint.config.name}",
        _what(checkpoint, num_parameters),
        "## Use\n\n" + (_use() if is_classifier else _use_to_start()),
        "## Training data\n\n" + "\n".join(_training_data(sidecar)),
        "## Evaluation\n\n" + "\n".join(_evaluation(checkpoint, sidecar)),
        "## Licence\n\n" + _licence(sidecar),
        "## Lineage\n\n" + "\n".join(_lineage(sidecar, weights_sha256)),
        "## Limits\n\n" + _limits(checkpoint),
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _front_matter(checkpoint: Checkpoint, sidecar: Mapping[str, Any]) -> dict[str, Any]:
    licences = sidecar["licences"]
    tags = ["audio-visual", "deepfake-detection", "pytorch", "safetensors", checkpoint.config.stage]
    about: dict[str, Any] = {"library_name": "avff", "tags": tags, "avff_version": __version__}
    if checkpoint.config.stage == "finetune":
        about["pipeline_tag"] = "video-classification"
    if len(licences) == 1:
        return {"license": licences[0].lower(), **about}
    # The Hub knows one name per model; a name of one's own goes with `other`.
    name = "-and-".join(licence.lower().replace(" ", "-") for licence in licences)
    return {"license": "other", "license_name": name, "license_link": "README.md", **about}


def _what(checkpoint: Checkpoint, num_parameters: int) -> str:
    config, clip = checkpoint.config, checkpoint.config.clip
    kind = (
        "Detector of forged talking-head video: three logits say whether a clip, its picture and its sound are fake."
        if config.stage == "finetune"
        else "Audio-visual masked autoencoder, pretrained on real video, to start a forgery detector from."
    )
    return (
        f"{kind} AVFF (Oorloff et al., CVPR 2024) of size `{config.model.size}`, {num_parameters:,} parameters, "
        f"from {checkpoint.what}. A clip is {clip.num_frames} frames at {clip.frames_per_second:g} per second of "
        f"{clip.image_size} x {clip.image_size} pixels and the {clip.duration_seconds:g} s of sound that go with them; "
        "`preprocessing.json` says how they are made."
    )


def _use() -> str:
    return (
        "```python\n" + USAGE.format(folder="path/to/this/folder") + "```\n\n"
        "`pip install 'avff[predict]'` brings all that this needs. A pre-cropped clip is a square about one face, cut as "
        "in training (`preprocessing.json`, `crop`); with `box`, the face's box in upright pixels, one for all frames or "
        "one per frame, the square is cut for you."
    )


def _use_to_start() -> str:
    return (
        "```\npython tools/adapt_weights.py --from model.safetensors --to configs/stage3_finetune.yaml --output init.safetensors\n"
        "avff train configs/stage3_finetune.yaml engine.init_weights=init.safetensors\n```"
    )


def _training_data(sidecar: Mapping[str, Any]) -> Iterator[str]:
    records = sidecar.get("trained_on")
    if not records:
        yield "Not recorded in the checkpoint."
    for record in records or ():
        name = Path(record["path"]).name
        if record.get("fingerprint") is None:
            yield f"- What `{name}` was trained on is not recorded."
            continue
        splits = ", ".join(record["splits"])
        yield (
            f"- `{name}`: {record['num_samples']:,} clips of split {splits}, labels `{record['labels']}`, manifest "
            f"sha256 `{record['fingerprint'][:16]}`"
        )


def _evaluation(checkpoint: Checkpoint, sidecar: Mapping[str, Any]) -> Iterator[str]:
    validation = sidecar.get("validation")
    if validation:
        threshold = validation.get("threshold")
        chosen = "" if threshold is None else f"; threshold {threshold:.4f} on the fake probability chosen there"
        yield f"- validation while training: {validation['metric']} {validation['value']:.4f}{chosen}"
    evaluations = list(_read_evaluations(checkpoint.reference.run_dir, sidecar["parents"][0]["sha256"]))
    for where, summary in evaluations:
        yield from _evaluated(where, summary)
    if not validation and not evaluations:
        yield "No numbers are recorded with this checkpoint."


def _read_evaluations(run_dir: Path, weights_sha256: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each `avff evaluate` of exactly these weights lies in the run folder, and its summary.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    for path in sorted(run_dir.glob("evaluation/*/summary.json")):
        try:
            summary = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}; run avff evaluate again, or delete it") from error
        if weights_sha256 in summary["checkpoint_sha256"]:
            yield str(path.relative_to(run_dir)), summary


def _evaluated(where: str, summary: Mapping[str, Any]) -> Iterator[str]:
    overall = summary["overall"]
    numbers = [_estimate(name, overall[name]) for name in METRICS if (overall.get(name) or {}).get("value") is not None]
    yield (
        f"- `avff evaluate` on {summary['dataset']}, split {summary['split']}: {overall['num_clips']} clips, "
        f"{overall['num_fake']} of them fake, {summary['undecided']['count']} undecided ({where})"
    )
    yield from (f"  - {number}" for number in numbers)
    yield from (f"  - to know: {hazard}" for hazard in summary["hazards"])


def _estimate(name: str, estimate: Mapping[str, Any]) -> str:
    interval = "" if estimate["low"] is None else f" (95 % interval {estimate['low']:.4f} to {estimate['high']:.4f})"
    return f"{METRICS[name]} {estimate['value']:.4f}{interval}"


def _licence(sidecar: Mapping[str, Any]) -> str:
    text = f"These weights are under {' and '.join(sidecar['licences'])}; the data they were trained on may add terms."
    if sidecar["non_commercial"]:
        text += "\n\n**Not for commercial use**: so says the licence of a parent (see below), and it binds what is made of it."
    return text


def _lineage(sidecar: Mapping[str, Any], weights_sha256: str) -> Iterator[str]:
    yield f"`{FOLDER_WEIGHTS}`, sha256 `{weights_sha256}`, was made from:"
    yield ""
    yield from _ancestors(sidecar["parents"], depth=0)


def _ancestors(parents: Sequence[Mapping[str, Any]], depth: int) -> Iterator[str]:
    for parent in parents:
        terms = ", ".join(parent.get("licences", [])) + (", non-commercial" if parent.get("non_commercial") else "")
        source = f", from {parent['url']}" if parent.get("url") else ""
        yield (
            f"{'  ' * depth}- {parent['what']} (`{parent['file']}`, sha256 `{parent['sha256']}`{source}), licence: {terms}"
        )
        yield from _ancestors(parent.get("parents", []), depth + 1)


def _limits(checkpoint: Checkpoint) -> str:
    text = CLASSIFIER_LIMITS if checkpoint.config.stage == "finetune" else NETWORK_LIMITS
    return text.format(seconds=checkpoint.config.clip.duration_seconds, crop=_crop(checkpoint.build))


def _crop(build: dict[str, Any] | None) -> str:
    if build is None:
        return "crops that the checkpoint does not describe"
    config = from_dict(BuildConfig, build, where="build")
    if config.mode == "frame":
        return "the whole frame"
    return f"one face, in a square of {config.video.crop_factor:g} times the longer side of its box"
