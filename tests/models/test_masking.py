"""Complementary masks: exact, per clip, independent of the batch."""

import torch

from avff.models.masking import complementary_masks, merge_slices
from avff.models.patches import take_slices


def test_each_clip_splits_its_slices_in_two_exact_halves() -> None:
    masks = complementary_masks(torch.arange(500), 8)
    assert masks.video_visible_BS.shape == masks.audio_visible_BS.shape == (500, 4)
    union = torch.cat([masks.video_visible_BS, masks.audio_visible_BS], dim=1).sort(dim=1).values
    assert torch.equal(union, torch.arange(8).expand(500, 8))
    assert (masks.video_visible_BS.diff(dim=1) > 0).all(), "slices are in order of time"


def test_masks_are_drawn_per_clip_and_evenly() -> None:
    masks = complementary_masks(torch.arange(4000), 6)
    assert len({tuple(row) for row in masks.video_visible_BS.tolist()}) == 20, "all 6-choose-3 masks occur"
    shown = torch.zeros(4000, 6).scatter(1, masks.video_visible_BS, 1.0).mean(dim=0)
    assert (shown - 0.5).abs().max() < 0.04


def test_a_clips_mask_depends_on_its_own_seed_only() -> None:
    seeds = torch.tensor([5, 99, 7])
    together, alone = complementary_masks(seeds, 8), complementary_masks(seeds[1:2], 8)
    assert torch.equal(together.video_visible_BS[1:2], alone.video_visible_BS)


def test_merging_puts_slices_back_in_time() -> None:
    masks = complementary_masks(torch.arange(3), 6)
    tokens = torch.randn(3, 6, 2, 5)
    first, second = take_slices(tokens, masks.video_visible_BS), take_slices(tokens, masks.audio_visible_BS)
    assert torch.equal(merge_slices(first, second, masks.video_visible_BS, masks.audio_visible_BS), tokens)
