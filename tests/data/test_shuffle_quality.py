"""Statistics of a shuffle: a sorted order is poor in each of them, a shuffled one in none; and what suits the ranks."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import write_indexed_directory

from avff.data.plan import build_plan
from avff.data.plan_layout import layout_warnings, working_batches, working_micro_batches, working_ranks
from avff.data.shuffle_quality import (
    batch_concentration,
    epoch_correlation,
    neighbours,
    shuffle_quality,
    stored_correlation,
    within_shard_correlation,
)
from avff.seeding import permutation

SORTED = np.arange(4000)
SHUFFLED, OTHER = permutation(4000, "a"), permutation(4000, "b")


@pytest.fixture
def plan_of(tiny_config, tmp_path):
    """Plans shards of the given sizes, and returns the config too: `plan, config = plan_of([30, 20], data={...})`."""

    def make(shard_sizes, columns=lambda number: {}, stage="pretrain", data=None, **overrides):
        directory = write_indexed_directory(tmp_path / f"d{len(list(tmp_path.iterdir()))}", shard_sizes, columns)
        data = {"train": [{"path": str(directory.path)}], **(data or {})}
        config = tiny_config(stage=stage, data=data, **overrides)
        return build_plan(config, [directory]), config

    return make


def poor(plan):
    return {statistic.name for statistic in shuffle_quality(plan) if statistic.is_poor}


@pytest.mark.parametrize(
    ("statistic", "of_sorted"),
    [
        (lambda sample_N: stored_correlation(sample_N, sample_N // 100), 1.0),
        (lambda sample_N: within_shard_correlation(sample_N, sample_N // 100), 1.0),
        (lambda sample_N: epoch_correlation(sample_N, sample_N, 40), 1.0),
        (lambda sample_N: neighbours("shard", sample_N // 100), 1 - 39 / 3999),
        (lambda sample_N: batch_concentration(sample_N // 100, 50), 1.0),
    ],
)
def test_each_statistic_finds_the_sorted_order(statistic, of_sorted):
    found = statistic(SORTED)
    assert found.is_poor and found.value == pytest.approx(of_sorted)


@pytest.mark.parametrize(
    "statistic",
    [
        lambda sample_N: stored_correlation(sample_N, sample_N // 100),
        lambda sample_N: within_shard_correlation(sample_N, sample_N // 100),
        lambda sample_N: epoch_correlation(sample_N, OTHER, 40),
        lambda sample_N: neighbours("shard", sample_N // 100),
        lambda sample_N: batch_concentration(sample_N // 100, 50),
    ],
)
def test_no_statistic_objects_to_a_perfect_shuffle(statistic):
    found = statistic(SHUFFLED)
    assert not found.is_poor and found.value == pytest.approx(found.perfect, abs=0.05)


def test_reading_backwards_is_no_shuffle():
    assert stored_correlation(SORTED[::-1], SORTED[::-1] // 100).is_poor
    assert epoch_correlation(SHUFFLED, SHUFFLED[::-1], 40).is_poor


def test_one_sorted_shard_and_sorted_shards_in_shuffled_order_are_found():
    one_shard = np.zeros_like(SORTED)
    assert within_shard_correlation(SORTED, one_shard).is_poor
    sample_N = (permutation(40, "shards")[:, None] * 100 + np.arange(100)).reshape(-1)
    assert not stored_correlation(sample_N, sample_N // 100).is_poor
    assert within_shard_correlation(sample_N, sample_N // 100).is_poor


def test_samples_that_come_several_times_or_not_at_all():
    sample_N = np.repeat(SORTED[:1000], 3)
    assert stored_correlation(sample_N, sample_N // 100).value == pytest.approx(1.0, abs=1e-5)
    assert epoch_correlation(sample_N, sample_N[1500:], 10).value == pytest.approx(1.0, abs=1e-5)


def test_a_shuffled_plan_is_good_and_one_of_whole_shards_is_poor(plan_of):
    engine = {"global_batch_size": 20, "micro_batch_size": 20}
    good, _ = plan_of([50] * 24, engine=engine)
    assert poor(good) == set()
    sorted_, _ = plan_of([50] * 24, data={"shuffle_window_shards": 1, "num_runs": 1}, engine=engine)
    assert poor(sorted_) == {"neighbours of one shard", "largest shard of a batch"}


def test_categories_stored_one_after_the_other_are_found(plan_of):
    def columns(number):
        return {"is_fake": 0} if number < 1200 else {"is_fake": 1, "category": "FVFA"}

    weak = {"shuffle_window_shards": 1, "num_runs": 1}
    one_by_one, _ = plan_of([1200, 1200], columns, stage="finetune", data=weak)
    assert "neighbours of one category" in poor(one_by_one)
    mixed, _ = plan_of([1200, 1200], columns, stage="finetune")
    assert poor(mixed) == set()


@given(seed=st.integers(0, 10**6), count=st.integers(2, 300), num_shards=st.integers(1, 20), batch=st.integers(1, 64))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_short_epochs_raise_no_false_alarm(seed, count, num_shards, batch):
    sample_N, next_N = permutation(count, seed, 0), permutation(count, seed, 1)
    shard_N = sample_N * num_shards // count
    for statistic in (
        stored_correlation(sample_N, shard_N),
        within_shard_correlation(sample_N, shard_N),
        epoch_correlation(sample_N, next_N, num_shards),
        neighbours("shard", shard_N),
        batch_concentration(shard_N, batch),
    ):
        assert not statistic.is_poor, statistic


# ------------------------------------------------------------------------------------------- ranks and workers


def test_layouts_that_suit_have_no_warning(plan_of):
    plan, config = plan_of([20] * 16)
    assert layout_warnings(plan, config, num_ranks=4, num_workers=4) == []


@pytest.mark.parametrize(
    ("shard_sizes", "overrides", "warning"),
    [
        ([20] * 15, {}, r"15 shards for 16 readers \(4 ranks x 4 workers\)"),
        ([20] * 20 + [61], {}, r"the largest shard gives 61 samples, the median one 20"),
        ([20] * 16, {"data": {"shuffle_window_shards": 1}}, r"data.shuffle_window_shards is 1: "),
        (
            [1] * 16,
            {"engine": {"global_batch_size": 20}},
            r"an epoch of 16 samples is smaller than the 20 of a step: every batch holds samples more than once",
        ),
    ],
)
def test_layouts_that_do_not_suit_have_one(plan_of, shard_sizes, overrides, warning):
    plan, config = plan_of(shard_sizes, **overrides)
    (found,) = layout_warnings(plan, config, num_ranks=4, num_workers=4)
    assert re.match(warning, found)


def test_what_divides(tiny_config):
    config = tiny_config(
        engine={"global_batch_size": 48, "micro_batch_size": 4}, pretrain={"contrastive_group_size": 12}
    )
    assert working_ranks(config) == [1, 3, 6, 12]  # 2 and 4 ranks: 8 and 16 clips are no part or multiple of 12
    assert working_micro_batches(config, 2) == [1, 2, 3, 6, 12, 24]
    assert working_batches(config, 3) == [24, 36, 48, 60, 72]
    assert working_batches(config, 5) == []
