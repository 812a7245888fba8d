"""Parameter groups, and the moving average kept beside Adam's moments."""

import pytest
import torch
from torch import nn

from avff.config import OptimConfig
from avff.engine.optimizer import AdamWithEma, ema_decay_at, parameter_groups, set_learning_rates
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
    _, _, expected = run_updates(torch.optim.AdamW, gradients)
    optimizer, parameter, history = run_updates(AdamWithEma, gradients, ema_decay=0.4)
    assert all(map(torch.equal, history, expected))
    average = history[0]
    for update, weights in enumerate(history[1:], start=1):
        decay = ema_decay_at(update, 0.4)
        average = decay * average + (1 - decay) * weights
    assert torch.allclose(optimizer.state[parameter]["ema"], average, atol=1e-6)
    assert [ema_decay_at(n, 0.4) for n in (1, 2)] == [pytest.approx(2 / 11), pytest.approx(3 / 12)]
    assert ema_decay_at(100, 0.4) == 0.4


def test_a_paused_optimizer_changes_nothing():
    optimizer, parameter, _ = run_updates(AdamWithEma, torch.ones(2, 3), ema_decay=0.9)
    before = [parameter.detach().clone(), *(value.clone() for value in optimizer.state[parameter].values())]
    optimizer.paused = True
    parameter.grad = torch.full((3,), torch.nan)
    optimizer.step()
    assert all(map(torch.equal, [parameter, *optimizer.state[parameter].values()], before))
