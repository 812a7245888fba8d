"""LoRA against its formula, and folded into the weights."""

import pytest
import torch
from torch import nn

from avff.errors import CheckpointError
from avff.models import build_classifier
from avff.models.lora import LoraLinear, is_lora, merge_lora
from avff.models.weights import load_into


@pytest.fixture
def config(odd_config):
    return odd_config("finetune", finetune={"encoders": "lora", "lora_rank": 3, "lora_alpha": 12.0})


@pytest.fixture
def trained(config) -> nn.Module:
    """The classifier with changes of the size of the weights."""
    model = build_classifier(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def test_a_layer_is_its_formula() -> None:
    base = nn.Linear(5, 7)
    layer = LoraLinear(base, rank=2, alpha=6.0)
    x = torch.randn(3, 4, 5)
    assert torch.equal(layer(x), base(x)), "no change at first"
    nn.init.normal_(layer.lora_up)
    weight = base.weight + 6.0 / 2 * layer.lora_up @ layer.lora_down
    torch.testing.assert_close(layer(x), x @ weight.T + base.bias)
    assert not torch.allclose(layer(x), base(x), atol=1e-2)
    assert [name for name, _ in layer.named_parameters()] == ["lora_down", "lora_up"]
    assert layer.lora_down.abs().max() <= 5**-0.5, "drawn as a weight of 5 inputs"


def test_changes_are_drawn_from_the_seed_alone(config, odd_config) -> None:
    one, same = build_classifier(config), build_classifier(config)
    torch.manual_seed(1)
    other = build_classifier(odd_config("finetune", finetune={"encoders": "lora", "lora_rank": 3}, seed=4))
    name = "audio_encoder.stack.blocks.2.attn.proj.lora_down"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], one.state_dict()[name.replace("audio", "video")])


def test_merged_weights_are_the_same_function_in_a_plain_network(config, trained, inputs) -> None:
    tensors, plain_config = merge_lora(trained.state_dict(), config)
    plain = build_classifier(plain_config).eval()
    load_into(plain, tensors, "merged")
    assert plain_config.finetune.encoders == "train"
    assert not any(is_lora(name) for name in tensors)
    with torch.no_grad():
        merged, unmerged = torch.stack(plain(*inputs(config))), torch.stack(trained(*inputs(config)))
        untouched = torch.stack(build_classifier(plain_config).eval()(*inputs(config)))
    assert (merged - unmerged).abs().max() < 1e-6 * unmerged.abs().max()
    assert (untouched - unmerged).abs().max() > 1e-3, "the changes matter"


def test_only_the_changed_weights_are_other_ones(config, trained) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    tensors, _ = merge_lora(trained.state_dict(), config)
    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}
    layers = {name.rpartition(".")[0] for name in before if is_lora(name)}
    assert changed == {f"{layer}.weight" for layer in layers} and len(changed) == 2 * 4 * 2
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items()), "nothing in place"


@pytest.mark.parametrize("encoders", ["train", "freeze"])
def test_without_lora_nothing_is_merged(odd_config, encoders: str) -> None:
    config = odd_config("finetune", finetune={"encoders": encoders})
    tensors = build_classifier(config).state_dict()
    merged, same = merge_lora(tensors, config)
    assert same is config
    assert merged.keys() == tensors.keys() and all(tensor is tensors[name] for name, tensor in merged.items())


@pytest.mark.parametrize("missing", ["weight", "lora_down", "lora_up"])
def test_half_a_change_is_refused_by_name(config, trained, missing: str) -> None:
    tensors = trained.state_dict()
    name = f"video_encoder.stack.blocks.1.attn.qkv.{missing}"
    del tensors[name]
    with pytest.raises(CheckpointError, match=f"LoRA cannot be merged into the weights: {name} missing"):
        merge_lora(tensors, config)
