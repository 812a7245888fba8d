"""Estimates against what real runs left and held."""

from pathlib import Path

import pytest

from avff.config import load_config
from avff.doctor import needs

DEMO = Path(__file__).parents[2] / "configs/demo/stage1.yaml"


def test_a_checkpoint_is_as_large_as_the_demo_wrote_it():
    """Two weight files, two files of the model's optimizer and two of the critics', as two ranks wrote them."""
    written = 2 * 6_633_860 + 13_264_864 + 13_287_728 + 1_839_616 + 1_842_272
    assert needs.checkpoint_bytes(load_config(DEMO)) == pytest.approx(written, rel=0.01)


def test_without_a_moving_average_one_weight_file_is_less():
    with_average, without = (needs.checkpoint_bytes(load_config(DEMO, [f"optim.ema_decay={x}"])) for x in (0.95, 0))
    assert with_average - without == pytest.approx(6_633_860, rel=0.01)


def test_frozen_encoders_have_no_optimizer_state_and_no_gradients(tiny_config):
    whole, frozen = (tiny_config("finetune", finetune={"encoders": encoders}) for encoders in ("train", "freeze"))
    learning, critics, fixed = needs.parameter_counts(frozen)
    assert (learning + fixed, critics, 0) == needs.parameter_counts(whole)
    assert needs.checkpoint_bytes(whole) - needs.checkpoint_bytes(frozen) == 4 * 4 * fixed > 0
    assert needs.gradient_bytes(whole) - needs.gradient_bytes(frozen) == 4 * fixed


def test_what_is_read_ahead_grows_with_workers_and_steps_and_shrinks_with_ranks(tiny_config):
    def ahead(num_workers: int, prefetch_steps: int, world_size: int) -> int:
        config = tiny_config(data={"num_workers": num_workers, "prefetch_steps": prefetch_steps})
        return needs.read_ahead_bytes(config, world_size)

    config = tiny_config()
    side, samples = config.clip.load_size, config.clip.num_samples
    assert ahead(1, 1, 1) == 2 * config.engine.global_batch_size * (8 * side * side * 3 + 4 * samples)
    assert ahead(3, 2, 4) * 4 == 3 * 3 / 2 * ahead(1, 1, 1)
    assert ahead(0, 4, 1) == 0


def test_gradients_follow_the_precision(tiny_config):
    in_bf16, in_fp32 = (needs.gradient_bytes(tiny_config(engine={"precision": p})) for p in ("bf16", "fp32"))
    assert in_fp32 == 2 * in_bf16 > 0


@pytest.mark.parametrize(("num_bytes", "words"), [(4096, "4 kB"), (24e6, "24 MB"), (3.14e9, "3.1 GB")])
def test_sizes_in_words(num_bytes, words):
    assert needs.bytes_in_words(num_bytes) == words
