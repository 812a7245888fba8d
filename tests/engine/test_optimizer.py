"""Parameter groups, and the moving average kept beside Adam's moments."""

import re

import pytest
import torch
from torch import nn

from avff.config import OptimConfig
from avff.engine.optimizer import STATE_KEYS, AdamWithEma, ema_decay_at, parameter_groups, set_learning_rates
from avff.objectives import build_objective


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_each_trainable_parameter_is_in_exactly_one_group(tiny_config, stage):
    objective = build_objective(tiny_config(stage=stage))
    for module in filter(None, (objective.model, objective.critics)):
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        new = [name for name in names.values() if name.startswith(("a2v", "overall_head"))]
        groups = parameter_groups(module, OptimConfig(), learning_rate=1.0, new_names=new)
        found = [names[id(parameter)] for group in groups for parameter in group["params"]]
        assert sorted(found) == sorted(names.values())


def test_only_matrices_decay_and_new_layers_learn_faster(tiny_config):
    model = build_objective(tiny_config(stage="finetune")).model
    new = [name for name, _ in model.named_parameters() if "head" in name]
    config = OptimConfig(weight_decay=0.3, new_layer_factor=4.0)
    groups = parameter_groups(model, config, learning_rate=0.5, new_names=new)
    by_parameter = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        group = by_parameter[id(parameter)]
        is_matrix = parameter.ndim > 1 and not name.endswith(("position_table", "position", "modality_embedding"))
        assert group["weight_decay"] == (0.3 if is_matrix else 0.0), name
        assert group["peak_lr"] == (2.0 if name in new else 0.5), name
    set_learning_rates(AdamWithEma(groups, betas=(0.9, 0.95), eps=1e-8, ema_decay=0.9), 0.1)
    assert {group["name"]: group["lr"] for group in groups} == {
        "decay": pytest.approx(0.05),
        "decay_new": pytest.approx(0.2),
        "no_decay": pytest.approx(0.05),
        "no_decay_new": pytest.approx(0.2),
    }


CHOICES = [
    {"encoders": "train"},
    {"encoders": "freeze", "trained_blocks": 2},
    {"encoders": "freeze"},
    {"encoders": "lora", "lora_rank": 2},
]


@pytest.mark.parametrize("finetune", CHOICES, ids=str)
def test_layers_nearer_to_the_input_learn_more_slowly(tiny_config, finetune):
    """Peak rates by the formula, block by block; each parameter is in one group, and a group has one rate."""
    model = build_objective(tiny_config(stage="finetune", finetune=finetune)).model
    new = [name for name, _ in model.named_parameters() if "_head" in name or "lora" in name]
    config = OptimConfig(layer_decay=0.5, new_layer_factor=4.0)
    groups = parameter_groups(model, config, learning_rate=0.25, new_names=new)
    peaks = {id(parameter): group["peak_lr"] for group in groups for parameter in group["params"]}
    assert len(peaks) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert len({group["name"] for group in groups}) == len(groups)
    num_blocks = 4
    for name, parameter in model.named_parameters():
        block = re.fullmatch(r"(?:video|audio)_encoder\.stack\.blocks\.(\d)\..*", name)
        expected = 0.25 * (4.0 if name in new else 1.0)
        if block:
            expected *= 0.5 ** (num_blocks + 1 - (int(block[1]) + 1))
        elif re.match(r"(video|audio)_encoder\.(patch_embed|position_table|modality_embedding)", name):
            expected *= 0.5 ** (num_blocks + 1)
        assert peaks[id(parameter)] == expected, name


def test_groups_of_layers_have_telling_names_in_a_fixed_order(tiny_config):
    model = build_objective(tiny_config(stage="finetune")).model
    groups = parameter_groups(model, OptimConfig(layer_decay=0.75), learning_rate=1.0)
    layers = [f"{modality}_{depth:02d}" for modality in ("audio", "video") for depth in range(5)]
    assert [group["name"] for group in groups] == [
        kind + layer for kind in ("no_decay", "decay") for layer in ("", *(f"_{layer}" for layer in layers))
    ]
    with_matrices = {group["name"]: group["encoder"] for group in groups}
    assert (with_matrices["decay_video_03"], with_matrices["no_decay"]) == ("video", "")


def test_a_layer_decay_leaves_critics_and_what_is_no_encoder_alone(tiny_config):
    objective = build_objective(tiny_config())
    decayed, plain = OptimConfig(layer_decay=0.5), OptimConfig()

    def groups(module, config):
        found = parameter_groups(module, config, learning_rate=0.3)
        return [(group["name"], group["peak_lr"], list(map(id, group["params"]))) for group in found]

    assert groups(objective.critics, decayed) == groups(objective.critics, plain)
    elsewhere = {name for name, peak, _ in groups(objective.model, decayed) if peak == 0.3}
    assert elsewhere == {"decay", "no_decay"}


def test_changes_of_matrices_decay_as_matrices(tiny_config):
    model = build_objective(tiny_config(stage="finetune", finetune={"encoders": "lora"})).model
    groups = parameter_groups(model, OptimConfig(weight_decay=0.3), learning_rate=1.0)
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    lora = [decays[id(parameter)] for name, parameter in model.named_parameters() if "lora" in name]
    assert lora == [0.3] * (2 * 4 * 2 * 2)


def test_a_frozen_parameter_is_refused_by_name():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with pytest.raises(TypeError, match="parameter bias is frozen"):
        parameter_groups(module, OptimConfig(), learning_rate=1.0)


def run_updates(optimizer_class, gradients, **keywords):
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    groups = [{"params": [parameter], "lr": 0.1, "peak_lr": 0.1, "weight_decay": 0.2}]
    optimizer = optimizer_class(groups, betas=(0.9, 0.95), eps=1e-8, **keywords)
    history = [parameter.detach().clone()]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        history.append(parameter.detach().clone())
    return optimizer, parameter, history


def test_weights_are_adamws_and_the_average_follows_them():
    gradients = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    _, _, expected = run_updates(torch.optim.AdamW, gradients, foreach=False, fused=False)
    optimizer, parameter, history = run_updates(AdamWithEma, gradients, ema_decay=0.4)
    for ours, plain in zip(history, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
    average = history[0]
    for update, weights in enumerate(history[1:], start=1):
        decay = ema_decay_at(update, 0.4)
        average = decay * average + (1 - decay) * weights
    assert torch.allclose(optimizer.state[parameter]["ema"], average, atol=1e-6)
    assert [ema_decay_at(n, 0.4) for n in (1, 2)] == [pytest.approx(2 / 11), pytest.approx(3 / 12)]
    assert ema_decay_at(100, 0.4) == 0.4


def test_a_restored_optimizer_goes_on_as_if_it_had_never_stopped():
    gradients = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    whole, _, history = run_updates(AdamWithEma, gradients, ema_decay=0.9)
    first, stopped, _ = run_updates(AdamWithEma, gradients[:4], ema_decay=0.9)
    second, resumed, _ = run_updates(AdamWithEma, [], ema_decay=0.9)
    state = second.init_state(resumed)
    for key in STATE_KEYS:
        state[key].copy_(first.state[stopped][key])
    resumed.data.copy_(stopped)
    second.restore(first.num_updates)
    for gradient in gradients[4:]:
        resumed.grad = gradient.clone()
        second.step()
    assert second.num_updates == whole.num_updates == 6 and torch.equal(resumed, history[-1])
    expected = next(iter(whole.state.values()))
    assert all(torch.equal(second.state[resumed][key], expected[key]) for key in ("step", *STATE_KEYS))


def test_a_paused_optimizer_changes_nothing():
    optimizer, parameter, _ = run_updates(AdamWithEma, torch.ones(2, 3), ema_decay=0.9)
    keys = ("step", *STATE_KEYS)
    before = [parameter.detach().clone(), *(optimizer.state[parameter][key].clone() for key in keys)]
    optimizer.paused = True
    parameter.grad = torch.full((3,), torch.nan)
    optimizer.step()
    assert all(map(torch.equal, [parameter, *(optimizer.state[parameter][key] for key in keys)], before))
    assert optimizer.num_updates == 2
