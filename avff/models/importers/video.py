"""What importers of picture encoders share: tubelet kernels, the 1-D sinusoid table, and all that they do not hold."""

import torch
from torch import Tensor

from avff.config import MODEL_SIZES, Config
from avff.models.importers.blocks import put_block
from avff.models.importers.source import Conversion, SourceKeys

VIDEO_GRID = (8, 14, 14)
"""Tokens of 16 frames of 224 pixels, on which every published video file was trained."""

TUBELET = (2, 16, 16)
"""Frames, height and width that one token of them covers."""

_OF_BOTH_STAGES = ("audio_encoder.", "a2v.", "v2a.", "temperature.")
_OF_ONE_STAGE = {
    "pretrain": ("audio_decoder.",),
    "finetune": ("video_pool.", "audio_pool.", "video_head.", "audio_head.", "overall_head."),
}


def sinusoid_table(num_positions: int, width: int) -> Tensor:
    """Returns the (1, L, D) table of VideoMAE and MARLIN: one count over all tokens, sines and cosines in turn.

    Source:
        Vaswani et al. 2017, §3.5; in float64 before it is rounded, as VideoMAE computes it.
    """
    position_L1 = torch.arange(num_positions, dtype=torch.float64)[:, None]
    angle = position_L1 / 10_000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float().unsqueeze(0)


def take_tubelet_embedding(keys: SourceKeys, layer: str) -> tuple[Tensor, Tensor]:
    """Returns a Conv3d's kernel as the (D, P) weight of a linear layer, and its bias, both float32.

    A kernel is (D, colour, time, height, width), the very order of values in a patch of ours.
    """
    weight_DP = keys.take(f"{layer}.weight", -1, 3, *TUBELET).float().flatten(1)
    return weight_DP, keys.take(f"{layer}.bias", len(weight_DP)).float()


def put_layer(keys: SourceKeys, conversion: Conversion, ours: str, theirs: str) -> None:
    """Maps the weight and the bias of a norm or a linear layer."""
    for kind in ("weight", "bias"):
        conversion.put(f"{ours}.{kind}", keys.take(f"{theirs}.{kind}"), f"{theirs}.{kind}")


def put_biased_block(
    keys: SourceKeys, conversion: Conversion, ours: str, theirs: str, width: int, *, bias: str = "q_bias", **names: str
) -> None:
    """Maps one block whose attention has to have a bias: all published files do, so that none is a broken file.

    Args:
        bias: what the attention calls it, or the first of its parts.
        names: as those of `put_block`.
    """
    keys.take(f"{theirs}attn.{bias}")
    put_block(keys, conversion, ours, theirs, width, **names)


def fill_token_norm(keys: SourceKeys, conversion: Conversion, pooled_norm: str, width: int) -> None:
    """Stands in for the encoder's last norm where a classifier was trained on the mean over tokens instead."""
    why = f"{pooled_norm} normalises the mean over all tokens; ours normalises each token"
    conversion.fill("video_encoder.stack.norm.weight", torch.ones(width), f"1: {why}")
    conversion.fill("video_encoder.stack.norm.bias", torch.zeros(width), f"0: {why}")
    keys.drop(conversion, f"{pooled_norm}.", "belongs to a classifier of the mean over tokens")
    conversion.notes.append("finetuned: tokens before the last norm are the source's; that norm is plain, not trained")


def fill_modality(conversion: Conversion, width: int) -> None:
    """Fills the modality embedding, which models of one modality do not have."""
    conversion.fill("video_encoder.modality_embedding", torch.zeros(1, 1, width), "0: it has no such embedding")


def put_decoder_entry(
    keys: SourceKeys,
    conversion: Conversion,
    config: Config,
    *,
    projection: str,
    decoder: str,
    blocks: str,
    mask_token: str,
) -> int:
    """Maps what leads into the video decoder, or drops all of it where the target has none of that size.

    Args:
        projection: key of the bias-free weight from encoder to decoder.
        decoder, blocks: beginnings of all keys of the decoder, and of its blocks.
        mask_token: key of what stands for hidden tokens.

    Returns:
        the decoder's width; 0 where it was dropped.
    """
    weight = keys.take(projection, -1, -1)
    width = len(weight)
    if why := _why_unfit(config, width, keys.depth(blocks)):
        conversion.dropped[projection] = why
        for part in (decoder, mask_token):
            keys.drop(conversion, part, why)
        if config.stage == "pretrain":
            conversion.left_out["video_decoder."] = why
        return 0
    conversion.put("video_decoder.embed.weight", weight, projection)
    conversion.fill("video_decoder.embed.bias", torch.zeros(width), "0: its projection has no bias")
    keys.drop(conversion, mask_token, "stands for hidden tokens, which A2V predicts here")
    return width


def _why_unfit(config: Config, width: int, depth: int) -> str:
    """Returns why the target cannot take a decoder of that size; empty where it can."""
    if config.stage != "pretrain":
        return "stage 3 has no decoders"
    ours = config.model.decoder
    if (ours.width, ours.depth) == (width, depth):
        return ""
    why = f"a decoder {width} wide and {depth} blocks deep, where the target's has {ours.width} and {ours.depth}"
    fitting = [name for name, (_, size) in MODEL_SIZES.items() if (size.width, size.depth) == (width, depth)]
    return f"{why}; model.decoder_size={fitting[0]} takes it" if fitting else why


def leave_out_the_rest(conversion: Conversion, config: Config) -> None:
    """Names the parts of the target that a model of pictures alone cannot fill."""
    for part in (*_OF_BOTH_STAGES, *_OF_ONE_STAGE[config.stage]):
        conversion.left_out[part] = "the source is a model of pictures alone"
