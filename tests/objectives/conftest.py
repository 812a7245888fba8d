"""Model inputs of a tiny clip."""

from collections.abc import Callable

import pytest
import torch

from avff.batch import ModelInputs
from avff.config import Config


@pytest.fixture
def make_inputs() -> Callable[..., ModelInputs]:
    """Makes random, normalised inputs of a config's clip: `make_inputs(config, batch=4)`; labels alternate."""

    def make(config: Config, batch: int = 4) -> ModelInputs:
        clip, rng = config.clip, torch.Generator().manual_seed(3)
        labels = torch.arange(batch) % 2
        return ModelInputs(
            video_BTCHW=torch.randn(batch, clip.num_frames, 3, clip.image_size, clip.image_size, generator=rng),
            mel_BMF=torch.randn(batch, clip.num_mel_frames, clip.num_mel_bins, generator=rng),
            seed_B=torch.randint(0, 2**62, (batch,), generator=rng),
            is_fake_B=labels,
            video_is_fake_B=labels,
            audio_is_fake_B=1 - labels,
        )

    return make
