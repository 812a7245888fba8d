"""What one training step hands to the engine."""

from typing import NamedTuple

from torch import Tensor


class CriticInputs(NamedTuple):
    """Detached patches for the critics' own step: predicted (fake) and true (real), of the hidden tokens."""

    video_fake_BKP: Tensor
    video_real_BKP: Tensor
    audio_fake_BKP: Tensor
    audio_real_BKP: Tensor
    seed_B: Tensor


class StepLosses(NamedTuple):
    """Losses of one micro step, float32.

    Attributes:
        total: scalar to differentiate. Its mean over ranks and micro steps is the loss of the global batch, so the
            gradient does not depend on how the batch is spread.
        terms: detached scalars to log.
        critic_inputs: what `critic_losses` needs; None when there are no critics.
    """

    total: Tensor
    terms: dict[str, Tensor]
    critic_inputs: CriticInputs | None = None
