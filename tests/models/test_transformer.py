"""The block against timm's, drop path against its definition."""

from functools import partial

import pytest
import torch

from avff.config import TransformerSize
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


def test_checkpointing_changes_no_gradient() -> None:
    plain = Stack(SIZE, 1e-6, "video_encoder", drop_path=0.5)
    frugal = Stack(SIZE, 1e-6, "video_encoder", drop_path=0.5, activation_checkpointing=True)
    frugal.load_state_dict(plain.state_dict())
    x, seeds = torch.randn(3, 5, 48), torch.arange(3)
    for stack in (plain, frugal):
        stack(x, seeds).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
