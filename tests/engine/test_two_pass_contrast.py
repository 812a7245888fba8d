"""Contrastive groups larger than a forward pass: ZeRO 0-3, 1 and 2 ranks, against one pass of one rank."""

import json
import logging
from itertools import product

import pytest
import torch

from avff.engine.train import announce_two_passes
from avff.strict_yaml import to_dict

CLIPS, GROUP = 8, 4
STAGES, RANKS = (0, 1, 2, 3), (1, 2)


@pytest.fixture(scope="module")
def updates(launch, make_config, tmp_path_factory):
    """Losses and gradients by number of ranks, then by name: whole batches, or micro batches of one clip."""
    folder = tmp_path_factory.mktemp("two_passes")

    def settings(precision: str, zero_stage: int, micro: int) -> dict:
        config = make_config(
            runs_dir=str(folder),
            # Contrast weighs enough to be seen among the other losses.
            pretrain={"contrastive_group_size": GROUP, "contrastive_weight": 1.0},
            model={"drop_path": 0.3},
            optim={"clip_gradient_norm": 0.0, "warmup_steps": 0},
            engine={
                "global_batch_size": CLIPS,
                "micro_batch_size": micro,
                "precision": precision,
                "zero_stage": zero_stage,
            },
        )
        return to_dict(config)

    whole = {f"whole {precision}": settings(precision, 0, CLIPS) for precision in ("fp32", "bf16")}
    # ZeRO-3 goes last: it replaces torch's linear function for the rest of the process.
    cut = {"cut bf16": settings("bf16", 1, 1), **{f"cut fp32 {stage}": settings("fp32", stage, 1) for stage in STAGES}}
    found = {}
    for num_ranks, configs in ((1, whole | cut), (2, cut)):
        (folder / f"{num_ranks}.json").write_text(json.dumps(configs))
        launch("contrast_worker.py", num_ranks, folder / f"{num_ranks}.json", folder / f"{num_ranks}.pt")
        found[num_ranks] = torch.load(folder / f"{num_ranks}.pt")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "stage"), product(RANKS, STAGES))
def test_two_passes_have_the_losses_and_gradient_of_one(updates, num_ranks, stage):
    (terms, gradients), (expected_terms, expected) = updates[num_ranks][f"cut fp32 {stage}"], updates[1]["whole fp32"]
    assert terms == pytest.approx(expected_terms, rel=1e-6, abs=1e-6)
    assert gradients.keys() == expected.keys()
    assert max((gradients[name] - expected[name]).abs().max() for name in expected) < 1e-6
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", RANKS)
def test_autocast_adds_no_more_than_its_rounding(updates, num_ranks):
    """Weights that autocast converted without gradient must not be kept for the second pass."""
    (terms, gradients), (expected_terms, expected) = updates[num_ranks]["cut bf16"], updates[1]["whole bf16"]
    assert terms == pytest.approx(expected_terms, rel=0.01, abs=0.01)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() < 0.02 * expected[name].norm(), name


def test_the_user_is_told_what_the_two_passes_could_be_spared_with(make_config, caplog):
    caplog.set_level(logging.INFO)
    engine = {"global_batch_size": CLIPS}
    announce_two_passes(make_config(engine={**engine, "micro_batch_size": GROUP}))
    assert not caplog.messages
    announce_two_passes(make_config(engine={**engine, "micro_batch_size": 1}))
    assert "groups of 4 clips are computed in two passes over 4 micro batches" in caplog.text
    assert "engine.micro_batch_size=4 would avoid" in caplog.text
