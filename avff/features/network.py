"""The parts of a trained network that give features; decoders and heads are neither needed nor loaded.

Shape suffixes here: `W` windows, otherwise those of avff.batch.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avff.batch import Clip, ModelInputs
from avff.config import ModelConfig
from avff.data.views import AVView
from avff.errors import CheckpointError
from avff.models.build import build_model
from avff.models.classifier import Classifier
from avff.models.lora import merge_lora
from avff.models.patches import patchify_audio, patchify_video
from avff.models.pretrain import PretrainModel
from avff.models.weights import load_into, load_weights
from avff.preprocess import Preprocess
from avff.run_folder import CheckpointRef

Feature = Literal["video", "audio", "a2v", "v2a"]
PARTS: dict[str, tuple[str, ...]] = {
    "video": ("video_encoder",),
    "audio": ("audio_encoder",),
    "a2v": ("audio_encoder", "a2v"),
    "v2a": ("video_encoder", "v2a"),
}
"""Feature -> parts of the network that it takes."""


class FeatureNetwork(nn.Module):
    """Mean tokens per slice: of the encoders (`video`, `audio`), and as predicted from the other modality.

    `a2v` averages the video tokens that A2V predicts from the sound, `v2a` the audio tokens that V2A predicts.

    Args:
        model: the parts that `features` take have to hold trained weights.
    """

    def __init__(self, model: PretrainModel | Classifier, features: Collection[str]):
        super().__init__()
        self.config: ModelConfig = model.config
        self.features = tuple(features)
        self.parts = nn.ModuleDict({part: getattr(model, part) for part in parts_of(features)})

    def forward(self, inputs: ModelInputs) -> dict[str, Tensor]:
        """Returns (B, S, D) float32 per feature."""
        tokens: dict[str, Tensor] = {}
        if "video_encoder" in self.parts:
            patches_BLP = patchify_video(inputs.video_BTCHW, self.config)
            tokens["video"] = self.parts["video_encoder"](patches_BLP, inputs.seed_B)
        if "audio_encoder" in self.parts:
            patches_BLP = patchify_audio(inputs.mel_BMF, self.config)
            tokens["audio"] = self.parts["audio_encoder"](patches_BLP, inputs.seed_B)
        for name, given in (("a2v", "audio"), ("v2a", "video")):
            if name in self.parts:
                tokens[name] = self.parts[name](tokens[given])
        return {name: tokens[name].float().mean(dim=2) for name in self.features}


class Extractor:
    """A feature network in evaluation mode, with the view and the preprocessing of its clips."""

    def __init__(self, network: FeatureNetwork, view: AVView, preprocess: Preprocess, device: torch.device):
        self.network = network.eval().to(device)
        self.view = view
        self.preprocess = preprocess
        self.device = device

    @torch.inference_mode()
    def __call__(self, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
        """Returns (W, S, D) float32 per feature.

        Raises:
            CheckpointError: a feature is not finite.
        """
        batch = self.view.collate(clips)
        moved = batch._replace(
            video_BTHWC=batch.video_BTHWC.to(self.device),
            waveform_BN=batch.waveform_BN.to(self.device),
            seed_B=batch.seed_B.to(self.device),
        )
        found = self.network(self.preprocess(moved, training=False))
        arrays = {name: values_BSD.cpu().numpy() for name, values_BSD in found.items()}
        for name, values_WSD in arrays.items():
            if bad := [
                clip.key for clip, values in zip(clips, values_WSD, strict=True) if not np.isfinite(values).all()
            ]:
                raise CheckpointError(
                    f"{name} features of {bad[0]!r} are not finite; the weights are broken, choose another checkpoint"
                )
        return arrays


def load_network(reference: CheckpointRef, features: Collection[str]) -> FeatureNetwork:
    """Builds the network of a checkpoint and fills the parts that the features take.

    Raises:
        CheckpointError: a part is not in the file, has other shapes, or was left to a random start.
    """
    path = reference.weights_path
    tensors, sidecar = load_weights(path)
    tensors, config = merge_lora(tensors, reference.config)
    _check_trained(tensors, sidecar.get("new", ()), features, str(path))
    model = build_model(config)
    for part in parts_of(features):
        own = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        load_into(getattr(model, part), own, f"{path}: {part}")
    return FeatureNetwork(model, features)


def parts_of(features: Collection[str]) -> list[str]:
    """Returns the parts of the network that any of the features takes, each once."""
    return list(dict.fromkeys(part for feature in features for part in PARTS[feature]))


def _check_trained(
    tensors: Mapping[str, Any], new: Collection[str] | Mapping[str, str], features: Collection[str], where: str
) -> None:
    """Refuses features of parts that a file leaves out; all of them are named, and those that it can give."""
    lacking: dict[str, str] = {}
    for part in parts_of(PARTS):
        random = [name for name in new if name.startswith(f"{part}.")]
        if random:
            why = f" ({new[random[0]]})" if isinstance(new, Mapping) else ""
            lacking[part] = f"{part} is left to a random start, {len(random)} tensors such as {random[0]}{why}"
        elif not any(name.startswith(f"{part}.") for name in tensors):
            lacking[part] = f"it holds no {part}"
    problems = [
        f"{feature!r} needs {part}, but {lacking[part]}"
        for feature in features
        for part in PARTS[feature]
        if part in lacking
    ]
    if problems:
        able = [feature for feature, parts in PARTS.items() if lacking.keys().isdisjoint(parts)]
        way_out = f"ask for --features {' '.join(able)}" if able else "these are not weights of an AVFF encoder"
        raise CheckpointError(f"{where}: no such features can be had: {'; '.join(problems)}; {way_out}")
