"""A config whose axes all differ in length, so that no test passes because two of them happen to be equal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from avff.config import Config

BATCH = 3


@pytest.fixture
def odd_config(tiny_config: Callable[..., Config]) -> Callable[..., Config]:
    """12 frames of 48 px and 384 x 32 log-mel in 6 slices: video tokens 6x3x3, audio tokens 24x2; sections override."""

    def make(stage: str = "pretrain", **overrides: Any) -> Config:
        clip = {"num_frames": 12, "image_size": 48, "hop_samples": 100, "num_mel_bins": 32, "num_slices": 6}
        return tiny_config(stage, **{**overrides, "clip": {**clip, **overrides.get("clip", {})}})

    return make


@pytest.fixture
def inputs() -> Callable[[Config], tuple[Tensor, Tensor, Tensor]]:
    """Makes (video_BTCHW, mel_BMF, seed_B) of a config's clip, B = 3."""

    def make(config: Config, batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
        clip, rng = config.clip, torch.Generator().manual_seed(7)
        video = torch.randn(batch, clip.num_frames, 3, clip.image_size, clip.image_size, generator=rng)
        mel = torch.randn(batch, clip.num_mel_frames, clip.num_mel_bins, generator=rng)
        return video, mel, torch.randint(0, 2**62, (batch,), generator=rng)

    return make
