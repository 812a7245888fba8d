"""Frozen encoders: buffers of the same names, the same function, no graph where nothing learns."""

import pytest
import torch
from torch import Tensor, nn

from avff.models import build_classifier
from avff.models.freeze import freeze, frozen_names
from avff.models.weights import load_into

CHOICES = {
    "freeze": {"encoders": "freeze"},
    "last block": {"encoders": "freeze", "trained_blocks": 1},
    "all blocks": {"encoders": "freeze", "trained_blocks": 4},
    "lora": {"encoders": "lora", "lora_rank": 2},
}


@pytest.fixture(params=CHOICES)
def choice(request) -> str:
    return request.param


@pytest.fixture
def config(odd_config, choice):
    return odd_config("finetune", finetune=CHOICES[choice])


def learns(choice: str, name: str) -> bool:
    """By name, what the choice lets learn."""
    part, *rest = name.split(".")
    if part not in ("video_encoder", "audio_encoder"):
        return True
    if choice == "lora":
        return rest[-1] in ("lora_down", "lora_up") and rest[-3:-1] in (["attn", "qkv"], ["attn", "proj"])
    first = {"freeze": None, "last block": 3, "all blocks": 0}[choice]
    if rest[0] != "stack" or first is None:
        return False
    return rest[1] == "norm" or int(rest[2]) >= first


def test_exactly_the_chosen_parameters_learn_under_their_old_names(odd_config, config, choice) -> None:
    plain, chosen = build_classifier(odd_config("finetune")), build_classifier(config)
    names, state = dict(chosen.named_parameters()), chosen.state_dict()
    assert set(names) == {name for name in state if learns(choice, name)}
    assert frozen_names(chosen) == {name for name in state if not learns(choice, name)}
    assert all(parameter.requires_grad for parameter in names.values())
    assert [name for name in state if "lora" not in name] == list(plain.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())


def test_it_is_the_same_function_at_first_to_the_bit(odd_config, config, inputs) -> None:
    plain, chosen = build_classifier(odd_config("finetune")), build_classifier(config)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            assert all(map(torch.equal, plain(*inputs(config)), chosen(*inputs(config))))


def test_every_parameter_learns_and_no_buffer_changes(config, inputs) -> None:
    model = build_classifier(config)
    frozen = {name: model.state_dict()[name].clone() for name in frozen_names(model)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    # LoRA's first factor has no gradient as long as the second is zero.
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(model(*inputs(config))).square().sum().backward()
        optimizer.step()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0] == []
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in frozen.items())


@pytest.mark.parametrize("activation_checkpointing", ["none", "cheap", "blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_begins_where_learning_does(
    odd_config, inputs, choice, activation_checkpointing: str, precision: str
) -> None:
    model_section = {"activation_checkpointing": activation_checkpointing}
    config = odd_config("finetune", finetune=CHOICES[choice], model=model_section)
    model = build_classifier(config)
    has_graph: dict[str, list[bool]] = {"video": [], "audio": []}
    for modality, seen in has_graph.items():
        encoder = getattr(model, f"{modality}_encoder")
        for part in (encoder.patch_embed, *encoder.stack.blocks, encoder):
            part.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output.requires_grad))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(*inputs(config))
    # Patch embedding, four blocks, the encoder's output.
    expected = {
        "freeze": [False] * 6,
        "last block": [False] * 4 + [True] * 2,
        "all blocks": [False] + [True] * 5,
        "lora": [False] + [True] * 5,
    }
    assert has_graph == {"video": expected[choice], "audio": expected[choice]}


def kept_bytes(encoder: nn.Module, *arguments: Tensor) -> int:
    """Memory that a forward pass keeps for the backward pass, weights aside."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in encoder.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = encoder(*arguments)
    del output
    return sum(kept.values())


def test_frozen_blocks_keep_no_activations(odd_config) -> None:
    kept = {}
    for name, choice in {"train": {}, **CHOICES}.items():
        encoder = build_classifier(odd_config("finetune", finetune=choice)).video_encoder
        kept[name] = kept_bytes(encoder, torch.randn(3, 54, 1536), torch.arange(3))
    assert kept["freeze"] == 0
    assert kept["last block"] < 0.3 * kept["train"]
    assert kept["lora"] < 0.9 * kept["train"]


def test_files_load_both_ways(odd_config, config, tmp_path) -> None:
    """A frozen network's state fits the plain one but for LoRA's keys, and the other way round."""
    plain, chosen = build_classifier(odd_config("finetune", seed=5)), build_classifier(config)
    lora = [name for name in chosen.state_dict() if "lora" in name]
    load_into(chosen, plain.state_dict(), "plain.safetensors", new=lora)
    assert all(torch.equal(chosen.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    other = build_classifier(odd_config("finetune"))
    load_into(other, {n: t for n, t in chosen.state_dict().items() if n not in lora}, "chosen.safetensors")
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["last block", "lora"])
def test_compiled_blocks_are_the_same(odd_config, choice: str) -> None:
    """Traced and differentiated as on a GPU; only the generated kernels are left out."""
    torch.compiler.reset()
    x, results = torch.randn(3, 48, 256), []
    for compiled in (False, True):
        encoder = build_classifier(odd_config("finetune", finetune=CHOICES[choice])).audio_encoder
        for block in encoder.stack.blocks:
            if compiled:
                block.compile(backend="aot_eager")
        tokens = encoder(x, torch.arange(3))
        tokens.square().sum().backward()
        results.append([tokens, *(parameter.grad for parameter in encoder.parameters())])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced, atol=1e-5, rtol=1e-4)


def test_what_goes_on_learning_is_left_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)))
    freeze(network, besides=[network[1][1]])
    assert [name for name, _ in network.named_parameters()] == ["1.1.weight", "1.1.bias"]
    assert [name for name, _ in network.named_buffers()] == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    assert network(torch.randn(5, 2)).requires_grad
