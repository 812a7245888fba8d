"""Wasserstein losses: signs, who receives a gradient, and that the critics learn."""

import pytest
import torch

from avff.models.critics import Critics
from avff.objectives.adversarial import critic_loss, frozen, generator_loss
from avff.objectives.losses import CriticInputs


def make_inputs(batch: int = 3) -> CriticInputs:
    rng = torch.Generator().manual_seed(0)
    patches = [torch.randn(batch, 4, width, generator=rng) for width in (12, 12, 5, 5)]
    return CriticInputs(patches[0] + 1, patches[1], patches[2] - 1, patches[3], torch.arange(batch))


class Wrapped(torch.nn.Module):
    """Stands where DeepSpeed's engine stands: holds the critics as `.module` and counts passes through itself."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module, self.passes = module, 0

    def forward(self, *arguments: object) -> object:
        self.passes += 1
        return self.module(*arguments)


def test_generator_lowers_its_loss_by_raising_scores_and_leaves_the_critics_alone() -> None:
    critics, inputs = Critics(12, 5, 8), make_inputs()
    video = inputs.video_fake_BKP.requires_grad_()
    loss = generator_loss(critics, video, inputs.audio_fake_BKP)
    expected = [output.score_BK.mean() for output in critics(video, inputs.audio_fake_BKP)]
    torch.testing.assert_close(loss, -sum(expected))
    loss.backward()
    assert video.grad is not None and video.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in critics.parameters())


def test_generator_passes_by_the_engine_and_the_critics_step_goes_through_it() -> None:
    wrapped, inputs = Wrapped(Critics(12, 5, 8)), make_inputs()
    generator_loss(wrapped, inputs.video_fake_BKP, inputs.audio_fake_BKP)
    assert wrapped.passes == 0
    critic_loss(wrapped, inputs, 1.0)
    assert wrapped.passes == 1


def test_generator_is_judged_in_the_precision_of_its_predictions() -> None:
    critics, inputs = Critics(12, 5, 8), make_inputs()
    loss = generator_loss(critics, inputs.video_fake_BKP.bfloat16(), inputs.audio_fake_BKP.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        expected = critics(inputs.video_fake_BKP, inputs.audio_fake_BKP)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, -sum(output.score_BK.mean() for output in expected))


def test_frozen_parameters_thaw_after_an_error() -> None:
    critics = Critics(12, 5, 8)
    with pytest.raises(KeyError), frozen(critics):
        assert not any(p.requires_grad for p in critics.parameters())
        raise KeyError
    assert all(p.requires_grad for p in critics.parameters())


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_critic_loss_by_hand(weight: float) -> None:
    critics, inputs = Critics(12, 5, 8), make_inputs()
    losses = critic_loss(critics, inputs, weight)
    fake = critics(inputs.video_fake_BKP, inputs.audio_fake_BKP)
    real = critics(inputs.video_real_BKP, inputs.audio_real_BKP)
    distance = sum(r.score_BK.mean() - f.score_BK.mean() for r, f in zip(real, fake, strict=True))
    penalty = sum(value for name, value in losses.terms.items() if name.endswith("penalty"))
    torch.testing.assert_close(losses.total, weight * penalty - distance)
    assert ("critic_video_penalty" in losses.terms) == (weight > 0)
    losses.total.backward()
    assert all(p.grad is not None for p in critics.parameters())


def test_the_penalty_point_follows_the_clips_seed() -> None:
    critics, inputs = Critics(12, 5, 8), make_inputs()
    other = inputs._replace(seed_B=inputs.seed_B + 50)
    assert torch.equal(critic_loss(critics, inputs, 1.0).total, critic_loss(critics, inputs, 1.0).total)
    assert not torch.equal(critic_loss(critics, inputs, 1.0).total, critic_loss(critics, other, 1.0).total)


def test_critics_learn_to_tell_predictions_from_truth() -> None:
    torch.manual_seed(0)
    critics, inputs = Critics(12, 5, 16), make_inputs(8)
    optimizer = torch.optim.Adam(critics.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        losses = critic_loss(critics, inputs, 10.0)
        losses.total.backward()
        optimizer.step()
    # Means differ by 1 per value: a score of slope 1 can tell them apart by about the root of their number.
    assert losses.terms["critic_video_distance"] > 2 and losses.terms["critic_audio_distance"] > 1
    assert losses.terms["critic_video_penalty"] < 0.5
