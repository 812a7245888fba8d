"""Two passes with cached gradients against one big pass, in one process; tests/engine has the ranks and ZeRO."""

import pytest
import torch

from avff.config import Config
from avff.objectives import PretrainObjective, build_objective

CLIPS = 8


@pytest.fixture
def make_config(tiny_config):
    def make(group: int, **pretrain) -> Config:
        return tiny_config(
            engine={"global_batch_size": CLIPS, "micro_batch_size": CLIPS},
            model={"size": "tiny", "drop_path": 0.3},
            # Contrast weighs enough to be seen among the other losses.
            pretrain={"contrastive_group_size": group, "contrastive_weight": 1.0, **pretrain},
        )

    return make


def cut(inputs, micro: int) -> list:
    return [type(inputs)(*(field[i : i + micro] for field in inputs)) for i in range(0, CLIPS, micro)]


def two_passes(objective: PretrainObjective, inputs, micro: int, group: int):
    """Returns the mean loss of an update, with its gradient in the model."""
    micro_batches, count = cut(inputs, micro), group // micro
    groups = [micro_batches[i : i + count] for i in range(0, len(micro_batches), count)]
    cached = [item for part in groups for item in objective.cache_group(objective.model, part)]
    steps = [
        objective.model_losses(objective.model, objective.critics, x, item)
        for x, item in zip(micro_batches, cached, strict=True)
    ]
    for step in steps:
        (step.total / len(steps)).backward()
    return {name: torch.stack([step.terms[name] for step in steps]).mean() for name in steps[0].terms}


def gradients(objective: PretrainObjective) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in objective.model.parameters()])


@pytest.mark.parametrize(("micro", "group"), [(2, 8), (1, 4)])
def test_loss_and_gradient_are_those_of_one_big_pass(make_config, make_inputs, micro, group) -> None:
    config = make_config(group)
    one, two = build_objective(config), build_objective(config)
    inputs = make_inputs(config, batch=CLIPS)
    whole = one.model_losses(one.model, one.critics, inputs)
    whole.total.backward()
    terms = two_passes(two, inputs, micro, group)
    for name, value in whole.terms.items():
        torch.testing.assert_close(terms[name], value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients(two), gradients(one), atol=1e-6, rtol=1e-5)
    temperature = two.model.temperature.log_excess.grad
    torch.testing.assert_close(temperature, one.model.temperature.log_excess.grad, atol=1e-6, rtol=1e-6)
    assert temperature.abs() > 1e-2  # else counting it once per micro batch would not be seen


def test_both_passes_see_the_same_embeddings_to_the_bit(make_config, make_inputs) -> None:
    config = make_config(CLIPS)
    objective = build_objective(config)
    inputs = make_inputs(config, batch=CLIPS)
    with torch.no_grad():
        first = objective.model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
    second = objective.model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
    assert torch.equal(first.video_BSD, second.video_BSD) and torch.equal(first.audio_BSD, second.audio_BSD)
    assert second.video_BSD.requires_grad and not first.video_BSD.requires_grad


def test_clip_level_contrast_works_on_masked_inputs_too(make_config, make_inputs) -> None:
    config = make_config(CLIPS, mask_input=True, contrastive_level="clip")
    one, two = build_objective(config), build_objective(config)
    inputs = make_inputs(config, batch=CLIPS)
    one.model_losses(one.model, one.critics, inputs).total.backward()
    two_passes(two, inputs, 2, CLIPS)
    torch.testing.assert_close(gradients(two), gradients(one), atol=1e-6, rtol=1e-5)
