"""Wasserstein losses of the two critics and of the model that they judge."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from avff import seeding
from avff.models.critics import CriticOutput
from avff.objectives.losses import CriticInputs, StepLosses


def generator_loss(critics: nn.Module, video_BKP: Tensor, audio_BKP: Tensor) -> Tensor:
    """-E[C(predicted)] of both modalities: the model's share, which sends no gradient to the critics.

    Args:
        critics: bare or wrapped by DeepSpeed. The wrapper is passed by, for it would take this pass for one of its
            own steps and refuse a backward pass that it does not run.
        video_BKP, audio_BKP: predicted patches; the critics judge them in their precision, which is that of training.
    """
    module, precision = getattr(critics, "module", critics), video_BKP.dtype
    autocast = torch.autocast(video_BKP.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
    with frozen(module), autocast:
        video, audio = module(video_BKP, audio_BKP)
    return -(video.score_BK.mean() + audio.score_BK.mean())


def critic_loss(critics: nn.Module, inputs: CriticInputs, gradient_penalty_weight: float) -> StepLosses:
    """E[C(predicted)] - E[C(true)] plus gradient penalty, summed over modalities.

    The penalty is taken on a point between each clip's prediction and truth; where, its seed says.

    Source:
        docs/method.md (L_D); Gulrajani et al. 2017 for the penalty; MARLIN runs it with weight 0.
    """
    share_B11 = seeding.uniform(inputs.seed_B, "gradient_penalty").view(-1, 1, 1)
    num_clips = len(share_B11)
    num_slopes = num_clips if gradient_penalty_weight > 0 else 0

    def stack(fake_BKP: Tensor, real_BKP: Tensor) -> Tensor:
        fake_BKP, real_BKP = fake_BKP.float(), real_BKP.float()
        between = [torch.lerp(real_BKP, fake_BKP, share_B11)] if num_slopes else []
        return torch.cat([*between, fake_BKP, real_BKP])

    outputs: tuple[CriticOutput, CriticOutput] = critics(
        stack(inputs.video_fake_BKP, inputs.video_real_BKP),
        stack(inputs.audio_fake_BKP, inputs.audio_real_BKP),
        num_slopes,
    )
    terms: dict[str, Tensor] = {}
    total = outputs[0].score_BK.new_zeros(())
    for name, output in zip(("video", "audio"), outputs, strict=True):
        fake_BK, real_BK = output.score_BK[num_slopes:].split(num_clips)
        distance = real_BK.mean() - fake_BK.mean()
        total = total - distance
        terms[f"critic_{name}_distance"] = distance.detach()
        if num_slopes:
            penalty = (output.slope_BK - 1).square().mean()
            total = total + gradient_penalty_weight * penalty
            terms[f"critic_{name}_penalty"] = penalty.detach()
    return StepLosses(total=total, terms={"critic_loss": total.detach(), **terms})


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Builds a graph through `module` without its parameters, so that only its inputs receive gradients."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
