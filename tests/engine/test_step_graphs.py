"""Compiled blocks: one graph each, no break, none that is made later; traced as on a GPU, kernels left out."""

from functools import partial

import pytest
import torch
from step_numbers import CLIPS, make_updater, micro_batches, numbers
from torch._dynamo.utils import counters

from avff.models.compiling import MAX_GRAPHS, compile_blocks

pytestmark = pytest.mark.slow

traced = partial(compile_blocks, backend="aot_eager")
CASES = {
    # name: (stage, overrides, graphs: one per shape of a block's input, another one where no gradient is wanted)
    "stage 1": ("pretrain", {"model": {"drop_path": 0.2}}, 6),
    "stage 1, input masked": ("pretrain", {"pretrain": {"mask_input": True, "contrastive_level": "clip"}}, 6),
    "stage 1, groups in two passes": ("pretrain", {"engine": {"micro_batch_size": 2}}, 12),
    "stage 1, cheap checkpointing": ("pretrain", {"model": {"activation_checkpointing": "cheap"}}, 6),
    "stage 1, ZeRO-3, blocks again": (
        "pretrain",
        {"model": {"activation_checkpointing": "blocks", "drop_path": 0.2}, "engine": {"zero_stage": 3}},
        6,
    ),
    "stage 3": ("finetune", {"model": {"drop_path": 0.2}, "engine": {"zero_stage": 2}}, 4),
    "stage 3, LoRA": ("finetune", {"finetune": {"encoders": "lora"}, "engine": {"zero_stage": 1}}, 6),
    "stage 3, frozen": ("finetune", {"finetune": {"encoders": "freeze", "trained_blocks": 1}}, 6),
}


def config_of(tiny_config, name: str):
    stage, overrides, _ = CASES[name]
    engine = {"global_batch_size": CLIPS, "micro_batch_size": CLIPS, "precision": "bf16"}
    return tiny_config(stage, **{**overrides, "engine": {**engine, **overrides.get("engine", {})}})


@pytest.mark.parametrize("name", CASES)
def test_all_graphs_are_there_after_the_first_update(tiny_config, name):
    torch.compiler.reset()
    counters.clear()
    config = config_of(tiny_config, name)
    updater, batches = make_updater(config, traced), micro_batches(config)
    graphs, losses = [], []
    for step in range(3):
        report = updater.update(step, batches)
        graphs.append(counters["stats"]["unique_graphs"])
        losses.append((report.terms["loss"], report.gradient_norms["model"]))
    assert graphs == [CASES[name][2]] * 3 and graphs[0] <= MAX_GRAPHS
    assert not counters["graph_break"]
    plain = numbers(config, num_updates=3)
    for found, expected in zip(losses, plain, strict=True):
        assert found == pytest.approx((expected.loss, expected.gradient_norm), rel=1e-5)


def test_evaluation_adds_one_graph_per_shape(tiny_config):
    torch.compiler.reset()
    counters.clear()
    config = config_of(tiny_config, "stage 3")
    updater, batches = make_updater(config, traced), micro_batches(config)
    updater.update(0, batches)
    for training in (False, True, False):
        updater.model.module.train(training)
        inputs = updater.preprocess(batches[0], training=training)
        with torch.no_grad():
            updater.model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
    # Drop path scales its branches in training only: no gradient with scales, none without.
    assert counters["stats"]["unique_graphs"] <= 3 * CASES["stage 3"][2]
    assert not counters["graph_break"]
