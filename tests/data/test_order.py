"""The order of samples as arithmetic: what has to hold for every number of shards, weights, runs and batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avff.data.order import Order
from avff.data.weights import balanced_weights
from avff.errors import ConfigError

PINNED_ORDER = [9, 7, 6, 2, 8, 10, 3, 1, 11, 5, 4, 0]
SHARD_SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def order_of(sizes, weights=None, *, seed=0, window_shards=2, num_runs=4):
    shard_M = np.repeat(np.arange(len(sizes)), sizes)
    weights = np.ones(len(shard_M)) if weights is None else np.asarray(weights, dtype=np.float64)
    return Order(shard_M, weights, seed=seed, window_shards=window_shards, num_runs=num_runs)


@given(
    sizes=SHARD_SIZES,
    window_shards=st.integers(1, 15),
    num_runs=st.integers(1, 300),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_every_sample_once_per_epoch(sizes, window_shards, num_runs, seed, epoch):
    order = order_of(sizes, seed=seed, window_shards=window_shards, num_runs=num_runs)
    count = sum(sizes)
    places = order.at(np.arange(epoch * count, (epoch + 1) * count))
    assert order.samples_per_epoch == count
    assert sorted(places.sample) == list(range(count))
    assert set(places.epoch) == {epoch} and set(places.occurrence) == {0}


@given(sizes=SHARD_SIZES, data=st.data(), num_runs=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_weighted_epochs(sizes, data, num_runs, seed):
    count = sum(sizes)
    weight = st.one_of(st.floats(0.01, 4.0), st.sampled_from([1 / 3, 0.5, 1.0, 2.0, 0.999999999]))
    weights = np.array(data.draw(st.lists(weight, min_size=count, max_size=count)))
    if weights.sum() < 1.01:
        weights[0] += 1.0
    order = order_of(sizes, weights, seed=seed, num_runs=num_runs)
    assert abs(order.samples_per_epoch - weights.sum()) < 1 + count * 2.0**-15
    for epoch in range(3):
        places = order.at(np.arange(order.samples_per_epoch) + epoch * order.samples_per_epoch)
        times = np.bincount(places.sample, minlength=count)
        # A fraction below 2^-16 counts as none, one above 1 - 2^-16 as a whole.
        assert (times >= np.floor(weights)).all() and (times <= np.ceil(weights)).all()
        pairs = set(zip(places.sample.tolist(), places.occurrence.tolist(), strict=True))
        assert pairs == {(sample, k) for sample in range(count) for k in range(times[sample])}


def test_fractions_come_as_often_as_they_say_and_do_not_follow_the_stored_order():
    # Stored in a cycle of four kinds: equally spaced choices without a shuffle would take one kind per epoch.
    order = order_of([40, 40, 40], np.full(120, 0.25))
    epochs = order.at(np.arange(400 * 30)).sample.reshape(400, 30)
    times = np.bincount(epochs.ravel(), minlength=120)
    assert times.mean() == 100 and times.std() < 15
    kinds = [len(set(epoch % 4)) for epoch in epochs]
    assert min(kinds) >= 3 and np.mean(kinds) > 3.9


@given(sizes=SHARD_SIZES, num_runs=st.sampled_from([1, 2, 6]), start=st.integers(0, 500), length=st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_seeking_equals_reading(sizes, num_runs, start, length):
    reading, seeking = order_of(sizes, num_runs=num_runs), order_of(sizes, num_runs=num_runs)
    read = np.array([reading.at(np.array([p])).sample[0] for p in range(start + length)])
    assert seeking.at(np.arange(start, start + length)).sample.tolist() == read[start:].tolist()


def test_epochs_and_seeds_differ_and_are_pinned():
    order = order_of([5, 3, 4])
    epochs = order.at(np.arange(36)).sample.reshape(3, 12).tolist()
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order_of([5, 3, 4], seed=1).at(np.arange(12)).sample.tolist() != epochs[0]
    # The order is a promise to every checkpoint ever written: a change here breaks resuming.
    assert epochs[0] == PINNED_ORDER


def test_windows_bound_the_shuffle():
    order = order_of([50] * 8, window_shards=2, num_runs=1)
    shards = order.at(np.arange(400)).sample // 50
    for window in shards.reshape(4, 100):
        assert sorted(np.bincount(window, minlength=8)) == [0] * 6 + [50, 50]
        assert len(set(window[:20])) == 2  # both shards of a window are mixed from its start


def test_runs_read_the_epoch_in_many_places():
    line = order_of([10] * 6, num_runs=1).at(np.arange(60)).sample
    in_runs = order_of([10] * 6, num_runs=4).at(np.arange(60)).sample
    assert in_runs.reshape(15, 4).T.ravel().tolist() == line.tolist()


def test_balanced_weights_share_by_value_and_factor():
    weights = balanced_weights(np.ones(6), ["a", "a", "a", "a", "b", "c"], {"b": 2.0, "c": 0.0})
    assert weights.tolist() == pytest.approx([5 / 12] * 4 + [10 / 3, 0.0])
    mixed = balanced_weights(np.array([3.0, 1.0, 1.0, 1.0]), ["a", "a", "b", "b"], {})
    assert mixed.tolist() == pytest.approx([2.25, 0.75, 1.5, 1.5])


def test_impossible_weights():
    with pytest.raises(ConfigError, match=r"sampling weights of 2 samples add up to 0.5, so an epoch would be empty"):
        order_of([2], [0.25, 0.25])
    with pytest.raises(ConfigError, match="a sampling weight is 1000000"):
        order_of([2], [1e6, 1.0])


@pytest.mark.slow
def test_a_million_samples():
    order = order_of([2000] * 500, num_runs=64, window_shards=8)
    places = order.at(np.arange(10**6) + 10**6)
    assert (np.bincount(places.sample) == 1).all()
    far = order.at(np.arange(64) + 10**11)
    assert set(far.epoch) == {10**5}
