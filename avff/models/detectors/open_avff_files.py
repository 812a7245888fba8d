"""Files of Open-AVFF: which of its stages they are of, and into its networks strictly."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from avff.models.detectors.open_avff import OpenAvffClassifier, OpenAvffPretrain
from avff.models.detectors.open_avff_parts import OpenAvffSize
from avff.models.weights import check_keys

Shapes = Mapping[str, tuple[int, ...]]
OpenAvffStage = Literal["pretrain", "finetune"]
_TELLING = ("audio_encoder.patch_embed.proj.weight", "visual_encoder.patch_embedding.projection.weight")
_OF_STAGE: tuple[tuple[str, OpenAvffStage], ...] = (
    ("visual_decoder.decoder_patch_embed.weight", "pretrain"),
    ("mlp_head.fc3.weight", "finetune"),
)


def open_avff_stage(shapes: Shapes) -> OpenAvffStage | None:
    """Returns which network these keys (without `module.`) are of; None where they are not of Open-AVFF.

    Stages 1 and 2 train the same network, `pretrain`.
    """
    found = [stage for name, stage in _OF_STAGE if name in shapes and all(key in shapes for key in _TELLING)]
    return found[0] if len(found) == 1 else None


def open_avff_size(shapes: Shapes) -> OpenAvffSize:
    """Returns the size of a file's networks. Heads leave no trace in the keys; they are taken to be the published."""

    def depth(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    width = shapes.get("visual_decoder.decoder_patch_embed.weight", (OpenAvffSize.decoder_width,))[0]
    return OpenAvffSize(
        encoder_depth=depth("visual_encoder.blocks."),
        decoder_width=width,
        decoder_depth=depth("visual_decoder.blocks.") or OpenAvffSize.decoder_depth,
    )


def expected_shapes(stage: OpenAvffStage, size: OpenAvffSize) -> dict[str, tuple[int, ...]]:
    """Returns the keys that a file of a stage holds."""
    with torch.device("meta"):
        network = OpenAvffPretrain(size) if stage == "pretrain" else OpenAvffClassifier(size)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def load_open_avff_classifier(
    tensors: Mapping[str, Tensor], where: str, *, attend_over_batch: bool = False
) -> OpenAvffClassifier:
    """Returns the stage-3 network in evaluation mode and float32, as deep as the file says.

    Args:
        tensors: without `module.`, as `read_published` returns them. The network keeps them, without a copy.
        where: the file, named in every message.

    Raises:
        CheckpointError: lists every missing, extra and misshapen key.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    size = open_avff_size(shapes)
    check_keys(expected_shapes("finetune", size), shapes, where)
    with torch.device("meta"):
        network = OpenAvffClassifier(size, attend_over_batch=attend_over_batch)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval()
