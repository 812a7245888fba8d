"""Complementary masks over time slices, drawn per clip (docs/method.md)."""

from typing import NamedTuple

import torch
from torch import Tensor

from avff import seeding
from avff.models.patches import take_slices


class SliceMasks(NamedTuple):
    """Which slices each modality shows; what one shows the other hides.

    Attributes:
        video_visible_BS, audio_visible_BS: int64 slice indices (B, num_slices / 2), ascending; together they
            hold every slice exactly once. The slices hidden from video are `audio_visible_BS`.
    """

    video_visible_BS: Tensor
    audio_visible_BS: Tensor


def complementary_masks(seed_B: Tensor, num_slices: int) -> SliceMasks:
    """Hides exactly half of the slices from video and the other half from audio.

    Args:
        seed_B: int64, one per clip; equal seeds give equal masks, on every device and in every batch.
    """
    order_BS = seeding.uniform(seed_B, "mask", num_slices).argsort(dim=1, stable=True)
    video_BS, audio_BS = order_BS.split(num_slices // 2, dim=1)
    return SliceMasks(video_BS.sort(dim=1).values, audio_BS.sort(dim=1).values)


def merge_slices(first_BSLD: Tensor, second_BSLD: Tensor, first_BS: Tensor, second_BS: Tensor) -> Tensor:
    """Puts two sets of slices back into time order; `first_BS` and `second_BS` say where each belongs."""
    position_BS = torch.cat([first_BS, second_BS], dim=1).argsort(dim=1)
    return take_slices(torch.cat([first_BSLD, second_BSLD], dim=1), position_BS)
