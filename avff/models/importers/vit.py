"""Image ViTs, MAE's and timm's, made into a video encoder: every tubelet is seen as the mean of its two frames.

On a still clip the tokens of every time step are those of the image model without its class token. That token has no
place in ours; how much the others lean on it differs from model to model.
"""

import math
from functools import partial

from torch import Tensor

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.importers.blocks import (
    encoder_size,
    fill_token_norm,
    fold_video_normalisation,
    leave_out,
    put_biased_block,
    put_layer,
)
from avff.models.importers.source import Conversion, Shapes, Source, SourceKeys
from avff.models.importers.video import TUBELET, fill_modality

PATCH = TUBELET[1:]
"""Height and width of an image's patch."""

DROPPED = {
    "cls_token": "the video encoder has no class token",
    "mask_token": "stands for hidden patches of an image",
    "decoder_": "a decoder of images, 8 blocks deep, which fits no decoder of ours",
    "pre_logits.": "belongs to the classifier",
    "head.": "classifies images",
}


_MAE_NOTE = "taken to read ImageNet's statistics, as MAE does"
_IMAGENET_NOTE = "taken to read ImageNet's statistics; a model that reads (x - 0.5) / 0.5 is --format timm-vit-half"
_HALF_NOTE = "taken to read (x - 0.5) / 0.5; a model that reads ImageNet's statistics is --format timm-vit"


def _is_image_vit(shapes: Shapes) -> bool:
    needed = ("pos_embed", "cls_token", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
    return shapes.get("patch_embed.proj.weight", ())[1:] == (3, *PATCH) and all(name in shapes for name in needed)


def _recognises_mae(shapes: Shapes) -> bool:
    """A classifier on the mean of all tokens may be MAE's, finetuned, as an encoder alone may; one on the class token is not."""
    return _is_image_vit(shapes) and ("head.weight" not in shapes or "fc_norm.weight" in shapes)


def _recognises_timm(shapes: Shapes) -> bool:
    """Of files without a head, the decoder alone shows that one is MAE's; the statistics hang on that."""
    return _is_image_vit(shapes) and not any(name.startswith("decoder_") for name in shapes)


def _convert(keys: SourceKeys, config: Config, *, half: bool, note: str) -> Conversion:
    """
    Args:
        half: the model reads (x - 0.5) / 0.5 of RGB in [0, 1] instead of frames normalised by ImageNet's statistics.
        note: what was taken for granted, for no key shows it.
    """
    conversion = Conversion(layer_norm_eps={"video": 1e-6})
    width = _put_tubelets(keys, conversion, half)
    depth = keys.depth("blocks.")
    encoder_size(width, depth, keys.where)
    _put_table(keys, conversion, config, width)
    fill_modality(conversion, width)
    for i in range(depth):
        ours = f"video_encoder.stack.blocks.{i}."
        put_biased_block(keys, conversion, ours, f"blocks.{i}.", width, bias="qkv.bias")
    if "fc_norm.weight" in keys:
        fill_token_norm(keys, conversion, "video_encoder.", "fc_norm", width)
    else:
        put_layer(keys, conversion, "video_encoder.stack.norm", "norm", width)
    for part, why in DROPPED.items():
        keys.drop(conversion, part, why)
    no_decoder = {"video_decoder.": "a decoder of images fits none of ours"}
    leave_out(conversion, config, no_decoder, "the source is a model of pictures alone")
    conversion.notes += [
        "an image model: exact on a still clip, save for its class token",
        "positions are equal at all times, so that the order of frames is not in these weights",
        note,
    ]
    return conversion


def _put_tubelets(keys: SourceKeys, conversion: Conversion, half: bool) -> int:
    """Maps the patch embedding and returns the width: half the kernel for each of a tubelet's two frames."""
    layer = "patch_embed.proj"
    kernel_DCHW = keys.take(f"{layer}.weight", -1, 3, *PATCH).float()
    bias_D = keys.take(f"{layer}.bias", len(kernel_DCHW)).float()
    frames = TUBELET[0]
    weight_DP = (kernel_DCHW / frames).unsqueeze(2).expand(-1, -1, frames, -1, -1).flatten(1)
    if half:
        # 2 r - 1 of RGB r first, and then r of what our frames hold.
        weight_DP, bias_D = fold_video_normalisation(2 * weight_DP, bias_D - weight_DP.sum(1), math.prod(TUBELET))
        for kind in ("weight", "bias"):
            conversion.folded[f"video_encoder.patch_embed.{kind}"] = "it reads (x - 0.5) / 0.5 of RGB in [0, 1]"
    made_of = f"{layer}.weight / {frames} for each frame of a tubelet"
    conversion.put("video_encoder.patch_embed.weight", weight_DP, made_of)
    conversion.put("video_encoder.patch_embed.bias", bias_D, f"{layer}.bias")
    return len(bias_D)


def _put_table(keys: SourceKeys, conversion: Conversion, config: Config, width: int) -> None:
    """Maps the position table of an image, once for every time step of the target's clip."""
    table_1LD = keys.take("pos_embed", 1, -1, width, typical=197)
    patches_1LD = _without_class(table_1LD, keys.where)
    side = math.isqrt(patches_1LD.shape[1])
    steps = config.clip.num_frames // config.model.tubelet_frames
    made_of = f"pos_embed of the patches, at each of {steps} times"
    conversion.put("video_encoder.position_table", patches_1LD.repeat(1, steps, 1), made_of)
    conversion.grids["video"] = (steps, side, side)


def _without_class(table_1LD: Tensor, where: str) -> Tensor:
    """Drops the first row, the class token's, where the others make up a square."""
    rows = table_1LD.shape[1]
    for first in (1, 0):
        if math.isqrt(rows - first) ** 2 == rows - first:
            return table_1LD[:, first:]
    raise CheckpointError(
        f"{where}: pos_embed has {rows} rows, which is no square of patches, with a class token or not"
    )


MAE = Source(
    name="mae",
    title="MAE, images (He et al., CVPR 2022), encoder, full or finetuned file",
    licence="CC-BY-NC-4.0",
    non_commercial=True,
    url="https://github.com/facebookresearch/mae",
    recognises=_recognises_mae,
    convert=partial(_convert, half=False, note=_MAE_NOTE),
)

TIMM_VIT = Source(
    name="timm-vit",
    title="timm's image ViT that reads ImageNet's statistics, such as DeiT and DINO",
    licence="Apache-2.0",
    non_commercial=False,
    url="https://huggingface.co/timm",
    recognises=_recognises_timm,
    convert=partial(_convert, half=False, note=_IMAGENET_NOTE),
)

TIMM_VIT_HALF = Source(
    name="timm-vit-half",
    title="timm's image ViT that reads (x - 0.5) / 0.5, such as augreg",
    licence="Apache-2.0",
    non_commercial=False,
    url="https://huggingface.co/timm",
    recognises=_recognises_timm,
    convert=partial(_convert, half=True, note=_HALF_NOTE),
)
