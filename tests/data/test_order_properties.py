"""What the order promises, for shards, mixtures, batches, ranks and workers drawn at random.

The drawn layouts mix directories of uneven shards; the slow test goes to a million samples. Ranks and workers are played by
plans of their own, made afresh as another process would make them; tests/data/test_stream.py runs real ones.
"""

import itertools
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import index_row_of, write_indexed_directory

from avff.config import Config
from avff.data.order import Order
from avff.data.plan import Plan, build_plan
from avff.data.selection import StoredSample
from avff.data.stream import rank_places
from avff.errors import ConfigError
from avff.strict_yaml import from_dict

MAX_WORKERS = 4
WORLD_SIZES = range(1, 9)
EQUAL_WEIGHTS = st.just(1.0)
MIXTURE_WEIGHTS = st.sampled_from([1.0, 2.0, 1.5, 1 / 3, 0.75, 3.0])


class Layout(NamedTuple):
    """What a plan is made from: samples per shard of each directory, and the directories' weights."""

    shard_sizes: list[list[int]]
    weights: list[float]
    global_batch_size: int
    num_runs: int
    window_shards: int
    seed: int

    @property
    def num_samples(self) -> int:
        return sum(map(sum, self.shard_sizes))

    @property
    def weights_of_samples(self) -> np.ndarray:
        return np.repeat(self.weights, [sum(sizes) for sizes in self.shard_sizes]).astype(np.float64)

    def order(self) -> Order:
        sizes = list(itertools.chain(*self.shard_sizes))
        return Order(
            np.repeat(np.arange(len(sizes)), sizes),
            self.weights_of_samples,
            seed=self.seed,
            window_shards=self.window_shards,
            num_runs=self.num_runs,
        )

    def plan(self) -> Plan:
        """A new plan with nothing read or cached, as a process that just started has it."""
        samples = [StoredSample(None, index_row_of(f"{n:07d}")) for n in range(self.num_samples)]
        return Plan(
            samples,
            self.order(),
            seed=self.seed,
            samples_per_step=self.global_batch_size,
            signature={"directories": []},
            dropped={},
        )


@st.composite
def layouts(draw, max_shards=60, max_shard_samples=30, max_batch=96, weights=EQUAL_WEIGHTS):
    """Directories of shards from one sample to `max_shard_samples`; batches above an epoch come too."""
    shards = st.lists(st.integers(1, max_shard_samples), min_size=1, max_size=max_shards)
    shard_sizes = draw(st.lists(shards, min_size=1, max_size=3))
    batch = draw(st.integers(1, max_batch))
    divisors = [d for d in range(1, batch + 1) if batch % d == 0]
    return Layout(
        shard_sizes,
        # A first weight of one or more keeps every epoch from being empty.
        [max(1.0, draw(weights)), *(draw(weights) for _ in shard_sizes[1:])],
        batch,
        draw(st.sampled_from(divisors)),
        draw(st.integers(1, max_shards + 5)),
        draw(st.integers(0, 3)),
    )


def clips(plan, steps):
    """What decides a clip, step by step: key and every random choice about it."""
    return [[(entry.sample.row.key, plan.clip_seeds(entry)[0]) for entry in plan.entries(step)] for step in steps]


def read_by_ranks(layout, steps, world_size, group_size, num_workers):
    """The same as `clips`, read by ranks whose workers serve the steps in turn, put together again."""
    batches = {step: [None] * layout.global_batch_size for step in steps}
    for rank in range(world_size):
        places = rank_places(layout.global_batch_size, group_size, rank, world_size)
        for worker in range(max(1, num_workers)):
            plan = layout.plan()
            for step in steps[worker :: max(1, num_workers)]:
                entries = plan.at(step * layout.global_batch_size + places)
                for place, entry in zip(places, entries, strict=True):
                    assert batches[step][place] is None, "two ranks read one place"
                    batches[step][place] = (entry.sample.row.key, plan.clip_seeds(entry)[0])
    return [batches[step] for step in steps]


# ------------------------------------------------------------------------------------------- epochs


@given(layout=layouts())
@settings(max_examples=60, deadline=None)
def test_each_epoch_reads_each_sample_once_in_full_steps(layout):
    plan = layout.plan()
    num_steps = -(-3 * plan.num_samples // layout.global_batch_size)
    line = [entry for step in range(num_steps) for entry in plan.entries(step)]
    assert [entry.position for entry in line] == list(range(num_steps * layout.global_batch_size))
    assert [entry.epoch for entry in line] == sorted(entry.epoch for entry in line)
    for epoch in range(3):
        keys = [entry.sample.row.key for entry in line if entry.epoch == epoch]
        assert len(keys) == layout.num_samples == len(set(keys))


@given(layout=layouts(weights=MIXTURE_WEIGHTS))
@settings(max_examples=60, deadline=None)
def test_each_epoch_reads_mixtures_as_weighted(layout):
    order, weight_M = layout.order(), layout.weights_of_samples
    assert order.samples_per_epoch == np.floor(np.sum(weight_M) + 1e-6)
    owner_M = np.repeat(np.arange(len(layout.weights)), [sum(sizes) for sizes in layout.shard_sizes])
    for epoch in range(3):
        places = order.at(np.arange(order.samples_per_epoch) + epoch * order.samples_per_epoch)
        assert set(places.epoch) == {epoch}
        times_M = np.bincount(places.sample, minlength=layout.num_samples)
        assert (times_M >= np.floor(weight_M)).all() and (times_M <= np.ceil(weight_M)).all()
        pairs = Counter(zip(places.sample.tolist(), places.occurrence.tolist(), strict=True))
        assert pairs == {(m, k): 1 for m in range(layout.num_samples) for k in range(times_M[m])}
        share = np.bincount(owner_M, weights=times_M)
        expected = np.bincount(owner_M, weights=weight_M)
        assert (np.abs(share - expected) <= 6 * np.sqrt(expected) + 2).all(), (share, expected)


@pytest.mark.slow
@given(
    count=st.integers(10**5, 10**6),
    num_shards=st.integers(1, 2000),
    window_shards=st.integers(1, 64),
    num_runs=st.sampled_from([1, 7, 64, 4096]),
    seed=st.integers(0, 9),
)
@settings(max_examples=8, deadline=None)
def test_epochs_of_up_to_a_million_samples(count, num_shards, window_shards, num_runs, seed):
    """Shards are cut at random, so that their sizes range from few samples to thousands."""
    shard_M = np.sort(np.random.default_rng(seed).integers(0, num_shards, size=count) ** 2 // num_shards)
    order, fresh = (
        Order(shard_M, np.ones(count), seed=seed, window_shards=window_shards, num_runs=num_runs) for _ in range(2)
    )
    for epoch in (0, 10**5):
        places = order.at(np.arange(count) + epoch * count)
        assert (np.bincount(places.sample, minlength=count) == 1).all() and set(places.epoch) == {epoch}
    inside = np.arange(count // 2, count // 2 + num_runs)
    assert (fresh.at(inside + epoch * count).sample == places.sample[inside]).all()


# ------------------------------------------------------------------------------------------- topologies


@given(data=st.data(), world_size=st.sampled_from(WORLD_SIZES), num_workers=st.integers(0, MAX_WORKERS))
@settings(max_examples=60, deadline=None)
def test_every_topology_reads_the_same_steps(data, world_size, num_workers):
    group_size = world_size * data.draw(st.integers(1, 4))
    batch = group_size * data.draw(st.integers(1, 3))
    layout = data.draw(layouts(max_shards=8, max_shard_samples=12, weights=MIXTURE_WEIGHTS))._replace(
        global_batch_size=batch, num_runs=batch
    )
    start = data.draw(st.integers(0, 10**6))
    steps = range(start, start + 9)
    assert read_by_ranks(layout, steps, world_size, group_size, num_workers) == clips(layout.plan(), steps)


@given(layout=layouts(weights=MIXTURE_WEIGHTS), ranks=st.permutations([1, 2, 3, 4, 6]), length=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_run_moved_between_ranks_reads_what_it_would_have_read(layout, ranks, length):
    layout = layout._replace(global_batch_size=24, num_runs=24)
    moved = []
    for i, world_size in enumerate(ranks):
        moved += read_by_ranks(layout, range(i * length, (i + 1) * length), world_size, 12, num_workers=i % 3)
    assert moved == clips(layout.plan(), range(len(ranks) * length))


@given(group=st.integers(1, 24), groups=st.integers(1, 4), world_size=st.sampled_from(WORLD_SIZES))
def test_ranks_share_every_group_evenly_or_are_refused(group, groups, world_size):
    if group % world_size:
        with pytest.raises(ConfigError, match=rf"{world_size} ranks cannot share groups of {group} in a step"):
            rank_places(group * groups, group, 0, world_size)
        return
    for rank in range(world_size):
        of_group = Counter((rank_places(group * groups, group, rank, world_size) // group).tolist())
        assert of_group == dict.fromkeys(range(groups), group // world_size)


@given(batch=st.integers(1, 96), micro=st.integers(1, 24), world_size=st.sampled_from(WORLD_SIZES))
def test_batches_that_do_not_divide_are_refused_with_numbers_that_work(batch, micro, world_size):
    def accumulation_steps(micro, world_size):
        engine = {"global_batch_size": batch, "micro_batch_size": micro}
        values = {"name": "x", "stage": "finetune", "data": {"labels": "known"}, "engine": engine}
        return from_dict(Config, values, where="test").accumulation_steps(world_size)

    try:
        steps = accumulation_steps(micro, world_size)
    except ConfigError as error:
        assert batch % (micro * world_size) != 0
        listed = [int(n) for n in re.findall(r"\d+", re.search(r"among (.*?) or|one of (.*)", str(error)).group())]
        assert listed
        if batch % world_size:
            assert [accumulation_steps(1, ranks) for ranks in listed]
        else:
            assert [accumulation_steps(works, world_size) for works in listed]
    else:
        assert steps * micro * world_size == batch


# ------------------------------------------------------------------------------------------- seeking


@given(layout=layouts(weights=MIXTURE_WEIGHTS), start=st.integers(0, 60), length=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_seeking_equals_having_read(layout, start, length):
    reading, seeking = layout.plan(), layout.plan()
    read = clips(reading, range(start + length))
    assert clips(seeking, range(start, start + length)) == read[start:]
    for mine, other in zip(seeking.entries(start), reading.entries(start), strict=True):
        assert list(seeking.substitutes(mine)) == list(reading.substitutes(other))


@given(layout=layouts(max_shards=3, max_shard_samples=4, max_batch=64), step=st.integers(0, 10**9))
@settings(max_examples=100, deadline=None)
def test_a_step_over_many_short_epochs_has_no_clip_twice(layout, step):
    plan = layout.plan()
    entries = plan.entries(step)
    epochs = [entry.epoch for entry in entries]
    first = step * layout.global_batch_size // plan.num_samples
    last = ((step + 1) * layout.global_batch_size - 1) // plan.num_samples
    assert sorted(set(epochs)) == list(range(first, last + 1))
    for epoch in range(first + 1, last):  # a passage that lies wholly inside the step
        assert len({e.sample.row.key for e in entries if e.epoch == epoch}) == plan.num_samples == epochs.count(epoch)
    assert len({plan.clip_seeds(entry)[0] for entry in entries}) == len(entries)


# ------------------------------------------------------------------------------------------- shards on the disk


def test_plans_over_real_directories(tmp_path, tiny_config):
    """Two mixed directories of uneven shards, some samples not usable: opened anew for each rank."""
    rng = np.random.default_rng(0)

    def columns(n):
        return {"is_fake": 1} if n % 5 == 0 else {"status": ("NO_FACE",)} if n % 7 == 0 else {}

    sizes = rng.integers(1, 120, size=(2, 20))
    directories = [
        write_indexed_directory(tmp_path / name, row.tolist(), columns) for name, row in zip("ab", sizes, strict=True)
    ]
    sources = [{"path": str(d.path), "weight": w} for d, w in zip(directories, (1.0, 2.5), strict=True)]
    config = tiny_config(
        data={"train": sources}, engine={"global_batch_size": 24}, pretrain={"contrastive_group_size": 12}
    )
    usable = [sum(n % 5 != 0 and n % 7 != 0 for n in range(sum(row))) for row in sizes.tolist()]
    plan = build_plan(config, directories)
    assert plan.num_samples == int(usable[0] + 2.5 * usable[1])
    steps = range(plan.num_samples // 24 + 2)  # into the second epoch
    line = [entry for step in steps for entry in plan.entries(step) if entry.epoch == 0]
    times = Counter(entry.sample.row.key for entry in line)
    assert all(count == 1 if key[0] == "a" else count in (2, 3) for key, count in times.items())
    assert len(times) == sum(usable)
    for world_size in (2, 3, 4, 6):
        for rank in range(world_size):
            places = rank_places(24, config.group_size, rank, world_size)
            own = build_plan(config, directories)
            for step in steps[::5]:
                assert own.at(step * 24 + places) == [plan.entries(step)[place] for place in places]
