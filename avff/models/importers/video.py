"""What importers of picture encoders share: tubelet kernels, the 1-D sinusoid table, the way into the decoder."""

import torch
from torch import Tensor

from avff.models.importers.source import Conversion, SourceKeys

VIDEO_GRID = (8, 14, 14)
"""Tokens of 16 frames of 224 pixels, on which every published video file was trained."""

TUBELET = (2, 16, 16)
"""Frames, height and width that one token of them covers."""


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


def fill_modality(conversion: Conversion, width: int) -> None:
    """Fills the modality embedding, which models of one modality do not have."""
    conversion.fill("video_encoder.modality_embedding", torch.zeros(1, 1, width), "0: it has no such embedding")


def put_decoder_entry(keys: SourceKeys, conversion: Conversion, projection: str, mask_token: str) -> int:
    """Maps what leads into the video decoder, and returns the decoder's width.

    Args:
        projection: key of the weight from encoder to decoder, which has no bias.
        mask_token: key of what stands for hidden tokens.
    """
    weight = keys.take(projection, -1, -1)
    conversion.put("video_decoder.embed.weight", weight, projection)
    conversion.fill("video_decoder.embed.bias", torch.zeros(len(weight)), "0: its projection has no bias")
    keys.drop(conversion, mask_token, "stands for hidden tokens, which A2V predicts here")
    return len(weight)
