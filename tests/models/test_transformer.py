"""The block against timm's, drop path against its definition."""

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avff.config import ActivationCheckpointing, TransformerSize
from avff.models.flops import ACTIVATION_BYTES_PER_VALUE
from avff.models.transformer import Block, Stack, branch_scales

SIZE = TransformerSize(width=48, depth=3, heads=4)


def test_block_equals_timm() -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")
    ours = Block(48, 4, 1e-6)
    reference = timm.Block(48, 4, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 48)
    torch.testing.assert_close(ours(x), reference(x), atol=1e-5, rtol=1e-5)


def test_sequences_of_a_batch_never_meet() -> None:
    block, x = Block(48, 4, 1e-6), torch.randn(3, 7, 48)
    changed = x.clone()
    changed[1] += 1
    torch.testing.assert_close(block(x)[[0, 2]], block(changed)[[0, 2]])


def test_drop_path_keeps_the_mean_and_grows_with_depth() -> None:
    scales = branch_scales(torch.arange(5000), "video_encoder", depth=3, drop_path=0.4)
    assert (scales[:, 0] == 1).all(), "the first block is never dropped"
    assert abs((scales[:, 2] == 0).float().mean() - 0.4) < 0.02
    assert abs((scales[:, 1] == 0).float().mean() - 0.2) < 0.02
    assert (scales.mean(dim=0) - 1).abs().max() < 0.05


def test_drop_path_is_keyed_by_clip_and_off_in_evaluation() -> None:
    stack, x, seeds = Stack(SIZE, 1e-6, "video_encoder", drop_path=0.9), torch.randn(4, 5, 48), torch.arange(4)
    trained = stack(x, seeds)
    torch.testing.assert_close(trained[2:3], stack(x[2:3], seeds[2:3]))
    assert not torch.allclose(trained, stack(x, seeds + 100))
    other = Stack(SIZE, 1e-6, "audio_encoder", drop_path=0.9)
    other.load_state_dict(stack.state_dict())
    assert not torch.allclose(trained, other(x, seeds)), "two stacks drop independently"
    stack.eval()
    assert torch.equal(stack(x, seeds), stack(x, seeds + 100))


def test_a_dropped_branch_leaves_the_residual() -> None:
    block, x = Block(48, 4, 1e-6), torch.randn(2, 5, 48)
    scales = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    out = block(x, scales)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1], block(x)[1])


POLICIES = ("none", "cheap", "blocks")


def build_stack(policy: ActivationCheckpointing) -> Stack:
    torch.manual_seed(0)
    return Stack(SIZE, 1e-6, "video_encoder", drop_path=0.5, activation_checkpointing=policy)


def kept_bytes(policy: ActivationCheckpointing) -> float:
    """Measures what is kept per token, channel and block in bf16, weights aside."""
    stack, x = build_stack(policy), torch.randn(4, 512, SIZE.width)
    num_weights = {parameter.numel() for parameter in stack.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() not in num_weights:  # neither a weight nor its cast
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    pack = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with pack, torch.autocast("cpu", torch.bfloat16):
        output = stack(x, torch.arange(4))
    del output
    return sum(kept.values()) / (x.numel() * SIZE.depth)


def test_each_policy_keeps_what_it_is_counted_with() -> None:
    final_norm = 4 / SIZE.depth
    for policy in POLICIES:
        # Besides, statistics of norms and attention: four fp32 numbers or so per token and block.
        assert 0 <= kept_bytes(policy) - ACTIVATION_BYTES_PER_VALUE[policy] - final_norm < 1.5, policy


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_changes_no_gradient(precision: str) -> None:
    found = {}
    for policy in POLICIES:
        stack, x = build_stack(policy), torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0))
        with FlopCounterMode(display=False) as counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                output = stack(x, torch.arange(3))
            (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        found[policy] = output, [parameter.grad for parameter in stack.parameters()], counter.get_total_flops()
    for policy in ("cheap", "blocks"):
        assert torch.equal(found[policy][0], found["none"][0])
        assert all(map(torch.equal, found[policy][1], found["none"][1])), policy
    assert found["cheap"][2] == found["none"][2], "no matrix product is computed twice"
    assert found["blocks"][2] > 1.15 * found["none"][2]
