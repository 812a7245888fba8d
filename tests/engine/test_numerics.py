"""No switch that makes the step faster or smaller changes its numbers by more than is stated here."""

from functools import partial
from itertools import product

import pytest
import torch
from step_numbers import CLIPS, clips, make_updater, micro_batches, numbers

from avff.bench.eager_model import EagerStep
from avff.config import TransformerSize
from avff.models import build_pretrain_model
from avff.models.compiling import compile_blocks
from avff.models.masking import complementary_masks
from avff.models.patches import join_slices, patchify_video, split_slices, take_slices
from avff.models.transformer import Stack

pytestmark = pytest.mark.slow

ROUNDING = 1e-5
"""Relative, of losses and gradient norms in fp32 where only the order of sums differs."""
BF16 = 2e-2
"""Relative, of bf16 against fp32."""
STAGES = ("pretrain", "finetune")
FAST_LEARNING = {"learning_rate": 1e-3, "warmup_steps": 0, "num_steps": 8}


@pytest.fixture
def base(tiny_config):
    """Makes the config of one rank that learns fast enough for the second update to tell what the first one did."""

    def make(stage: str, **overrides):
        engine = {"global_batch_size": CLIPS, "micro_batch_size": CLIPS, **overrides.pop("engine", {})}
        return tiny_config(stage, optim=FAST_LEARNING, engine=engine, **overrides)

    return make


def assert_equal(found, expected, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=tolerance)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=tolerance)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_against_fp32(base, stage):
    expected, found = numbers(base(stage)), numbers(base(stage, engine={"precision": "bf16"}))
    assert_equal(found, expected, BF16)
    assert found != expected


@pytest.mark.parametrize(("stage", "precision", "policy"), product(STAGES, ("fp32", "bf16"), ("cheap", "blocks")))
def test_activation_checkpointing(base, stage, precision, policy):
    engine = {"precision": precision}
    model = {"drop_path": 0.3, "activation_checkpointing": policy}
    expected = numbers(base(stage, engine=engine, model={"drop_path": 0.3}))
    assert_equal(numbers(base(stage, engine=engine, model=model)), expected, 1e-9)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-2)])
def test_a_block_compiled_to_machine_code(precision, tolerance):
    """By inductor, with the kernels that it makes for this processor; tests/engine/test_step_graphs.py has whole updates."""
    torch.compiler.reset()
    x, weights, results = *torch.randn(2, 2, 48, 96, generator=torch.Generator().manual_seed(0)), []
    for compiled in (False, True):
        torch.manual_seed(0)
        stack = Stack(TransformerSize(width=96, depth=1, heads=3), 1e-6, "video_encoder")
        if compiled:
            compile_blocks(stack)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            tokens = stack(x)
        (tokens * weights).mean().backward()
        results.append([tokens, *(parameter.grad for parameter in stack.parameters())])
    for plain, compiled in zip(*results, strict=True):
        assert (compiled - plain).norm() <= tolerance * plain.norm() + 1e-9


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", ROUNDING), ("bf16", BF16)])
def test_zero_stages(base, precision, tolerance):
    expected = numbers(base("pretrain", engine={"zero_stage": 0, "precision": precision}))
    for stage in (1, 2, 3):
        found = numbers(base("pretrain", engine={"zero_stage": stage, "precision": precision}))
        assert_equal(found[:1], expected[:1], ROUNDING)  # of equal weights
        assert_equal(found, expected, tolerance)


@pytest.mark.parametrize("encoders", [{"encoders": "lora"}, {"encoders": "freeze", "trained_blocks": 2}], ids=str)
def test_zero_3_with_frozen_encoders(base, monkeypatch, encoders):
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # DeepSpeed replaces it here
    expected = numbers(base("finetune", finetune=encoders, engine={"zero_stage": 1}))
    assert_equal(numbers(base("finetune", finetune=encoders, engine={"zero_stage": 3})), expected, ROUNDING)


def test_zero_3_leaves_torchs_linear_function_alone(base):
    """DeepSpeed would replace it for the whole process by one whose compiled backward pass is wrong."""
    before = torch.nn.functional.linear
    make_updater(base("pretrain", engine={"zero_stage": 3}))
    assert torch.nn.functional.linear is before


def test_against_the_unfused_eager_step(base):
    """Explicit attention, convolutions, separate products, AdamW parameter by parameter: the same function."""
    config = base("pretrain", pretrain={"contrastive_group_size": CLIPS})
    eager = EagerStep(config, torch.device("cpu"))
    expected = [eager.update(step, clips(config, CLIPS)) for step in range(3)]
    found = numbers(config, num_updates=3)
    for (loss, gradient_norm), ours in zip(expected, found, strict=True):
        assert ours.loss == pytest.approx(loss, rel=ROUNDING)
        assert ours.gradient_norm == pytest.approx(gradient_norm, rel=1e-4)


def test_input_masked_by_gathering_against_attention_masks(base):
    """Tokens that never enter the encoder, against all tokens with the hidden ones masked in every attention."""
    config = base("pretrain", pretrain={"mask_input": True, "contrastive_level": "clip"})
    encoder = build_pretrain_model(config).video_encoder
    batch = make_updater(config).preprocess(clips(config, CLIPS), training=True)
    visible_BS = complementary_masks(batch.seed_B, config.clip.num_slices).video_visible_BS
    patches_BLP = patchify_video(batch.video_BTCHW, config.model)
    gathered = encoder(patches_BLP, batch.seed_B, visible_BS)

    num_slices, tokens = config.clip.num_slices, patches_BLP.shape[1]
    shown_BS = torch.zeros(CLIPS, num_slices, dtype=torch.bool).scatter(1, visible_BS, True)
    shown_BL = shown_BS.repeat_interleave(tokens // num_slices, dim=1)
    masked = partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=shown_BL[:, None, None, :])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avff.models.transformer.F.scaled_dot_product_attention", masked)
        every = split_slices(join_slices(encoder(patches_BLP, batch.seed_B)), num_slices)
    torch.testing.assert_close(gathered, take_slices(every, visible_BS), rtol=1e-4, atol=1e-5)


def test_micro_batches_add_up(base):
    """Accumulation is no optimisation of this step, but all of the above holds for it, too."""
    whole = base("finetune")
    cut = base("finetune", engine={"micro_batch_size": CLIPS // 2})
    assert len(micro_batches(cut)) == 2
    assert_equal(numbers(cut), numbers(whole), ROUNDING)
