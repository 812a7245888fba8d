"""Stage 3: labels, unknown labels, batches, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from avff.batch import UNKNOWN
from avff.models.classifier import Logits, blanked_modalities
from avff.objectives import build_objective
from avff.objectives.finetune import binary_loss_per_clip


def losses(objective, inputs):
    return objective.model_losses(objective.model, None, inputs)


def test_positive_logits_mean_fake() -> None:
    loss = binary_loss_per_clip(torch.tensor([5.0, 5.0, -5.0, -5.0]), torch.tensor([1, 0, 0, 1]), 0.0)
    assert (loss[[0, 2]] < 0.01).all() and (loss[[1, 3]] > 4.9).all()


def test_label_smoothing_moves_targets_towards_a_half() -> None:
    logit = torch.randn(6)
    target = torch.tensor([0, 1, 0, 1, 1, 0])
    expected = F.binary_cross_entropy_with_logits(logit, torch.where(target > 0, 0.95, 0.05), reduction="none")
    torch.testing.assert_close(binary_loss_per_clip(logit, target, 0.1), expected)


def test_unknown_labels_give_no_loss_and_no_gradient() -> None:
    logit = torch.randn(4, requires_grad=True)
    loss = binary_loss_per_clip(logit, torch.tensor([1, UNKNOWN, 0, UNKNOWN]), 0.1)
    loss.sum().backward()
    assert loss[[1, 3]].tolist() == [0, 0] and logit.grad[[1, 3]].tolist() == [0, 0]
    assert (logit.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("label", [0, 1, UNKNOWN])
def test_a_logit_that_is_not_finite_shows_whatever_the_label(value: float, label: int) -> None:
    loss_B = binary_loss_per_clip(torch.tensor([0.5, value]), torch.tensor([1, label]), 0.1)
    assert loss_B.isfinite().tolist() == [True, False]


def test_each_head_reads_its_own_label(tiny_config, make_inputs) -> None:
    config = tiny_config("finetune", finetune={"overall_weight": 1.0, "video_weight": 10.0, "audio_weight": 100.0})
    objective = build_objective(config)
    inputs = make_inputs(config)._replace(
        is_fake_B=torch.tensor([1, 1, 1, 1]),
        video_is_fake_B=torch.tensor([0, 0, 0, 0]),
        audio_is_fake_B=torch.tensor([UNKNOWN, 1, 0, UNKNOWN]),
    )
    logits = Logits(torch.full((4,), 2.0), torch.full((4,), -3.0), torch.full((4,), 1.0))
    step = objective.model_losses(lambda *_: logits, None, inputs)
    softplus = F.softplus(torch.tensor([-2.0, -3.0, -1.0, 1.0]))
    expected = [softplus[0], softplus[1], (softplus[2] + softplus[3]) / 4]
    names = ("overall_loss", "video_loss", "audio_loss")
    torch.testing.assert_close(torch.stack([step.terms[name] for name in names]), torch.stack(expected))
    torch.testing.assert_close(step.total, expected[0] + 10 * expected[1] + 100 * expected[2])


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_average_to_the_whole_batch(tiny_config, make_inputs, parts: int) -> None:
    """Also where labels are unknown unevenly: a clip weighs the same in every batch, on every rank."""
    config = tiny_config("finetune", finetune={"head_dropout": 0.2, "modality_dropout": 0.3})
    objective = build_objective(config)
    inputs = make_inputs(config)._replace(video_is_fake_B=torch.tensor([UNKNOWN, UNKNOWN, UNKNOWN, 1]))
    whole = losses(objective, inputs).total
    pieces = [type(inputs)(*piece) for piece in zip(*(field.chunk(parts) for field in inputs), strict=True)]
    split = torch.stack([losses(objective, piece).total for piece in pieces]).mean()
    torch.testing.assert_close(whole, split, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_one_batch_is_learnt_by_all_heads(tiny_config, make_inputs) -> None:
    config = tiny_config("finetune")
    objective = build_objective(config)
    inputs = make_inputs(config, batch=8)
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        step = losses(objective, inputs)
        step.total.backward()
        optimizer.step()
    assert all(step.terms[name] < 0.1 for name in ("overall_loss", "video_loss", "audio_loss"))


def test_a_clip_that_lost_a_modality_is_judged_by_the_other(tiny_config, make_inputs) -> None:
    """With its picture blanked, an FVRA clip is real sound; calling it fake would teach the head to see ghosts."""
    config = tiny_config("finetune", finetune={"modality_dropout": 0.8})
    inputs = make_inputs(config)._replace(
        is_fake_B=torch.ones(4, dtype=torch.int64),
        video_is_fake_B=torch.tensor([1, 1, UNKNOWN, UNKNOWN]),
        audio_is_fake_B=torch.tensor([0, 0, UNKNOWN, UNKNOWN]),
    )
    no_video_B, no_audio_B = blanked_modalities(torch.arange(400), 0.8)
    blind, deaf, whole = (int(mask.nonzero()[0]) for mask in (no_video_B, no_audio_B, ~(no_video_B | no_audio_B)))
    inputs = inputs._replace(seed_B=torch.tensor([blind, deaf, blind, whole]))
    logits = Logits(torch.full((4,), 2.0), torch.zeros(4), torch.zeros(4))
    step = build_objective(config).model_losses(lambda *_: logits, None, inputs)
    says_fake, says_real = F.softplus(torch.tensor(-2.0)), F.softplus(torch.tensor(2.0))
    expected = (says_real + says_fake + 0 + says_fake) / 4  # real sound; forged picture; unknown; the clip's own label
    torch.testing.assert_close(step.terms["overall_loss"], expected)
    assert 0.35 < no_video_B.float().mean() < 0.45
    assert not (no_video_B & no_audio_B).any()
