"""The plan of a stage: what it reads, and how fast a step is found in it, at any number of ranks."""

import time
from typing import NamedTuple

import numpy as np

from avff.config import Config
from avff.data.order import Order
from avff.data.plan import Plan, build_plan
from avff.data.selection import open_directories
from avff.data.shards import ShardDirectory
from avff.data.stream import rank_places

SAMPLES_PER_SHARD = 2000
"""Of a plan without shards: about half a gigabyte of clips."""
LATE_EPOCH = 10


class Seek(NamedTuple):
    """Seconds to find what stands in a step; the first time in an epoch its order is made."""

    step: int
    first_seconds: float
    again_seconds: float


class PlanFacts(NamedTuple):
    """What a stage's plan holds.

    Attributes:
        source: shards that were opened, or that it is made up.
        samples: per epoch.
        shards: files.
        bytes_per_sample: of the shard files; 0 where there are none.
        make_seconds: until the plan was there, opening shards included.
        seeks: at the first, a late, and the last step.
        plan: None where it is made up.
    """

    source: str
    samples: int
    shards: int
    bytes_per_sample: float
    make_seconds: float
    seeks: list[Seek]
    plan: Plan | None


def plan_facts(config: Config, num_made_up: int) -> PlanFacts:
    """Opens the config's shards, or without `num_made_up` = 0 lays out so many samples, and times seeks in their order."""
    start = time.perf_counter()
    if num_made_up:
        order, plan = made_up_order(config, num_made_up), None
        directories: list[ShardDirectory] = []
    else:
        directories = open_directories(config.data.train)
        plan = build_plan(config, directories)
        order = plan.order
    seconds = time.perf_counter() - start
    shards = sum(len(directory.shards) for directory in directories) or -(-num_made_up // SAMPLES_PER_SHARD)
    rows = sum(len(directory.rows) for directory in directories)
    num_bytes = sum(shard.bytes for directory in directories for shard in directory.shards)
    last = config.optim.num_steps - 1
    late = LATE_EPOCH * order.samples_per_epoch // config.samples_per_step
    return PlanFacts(
        source=", ".join(str(directory.path) for directory in directories) or f"{num_made_up} made-up samples",
        samples=order.samples_per_epoch,
        shards=shards,
        bytes_per_sample=num_bytes / rows if rows else 0.0,
        make_seconds=seconds,
        seeks=[time_seek(order, config, step) for step in sorted({0, min(late, last), last})],
        plan=plan,
    )


def made_up_order(config: Config, num_samples: int) -> Order:
    """Returns the order of samples that exist nowhere, in shards of SAMPLES_PER_SHARD."""
    return Order(
        np.arange(num_samples) // SAMPLES_PER_SHARD,
        np.ones(num_samples),
        seed=config.seed,
        window_shards=config.data.shuffle_window_shards,
        num_runs=config.num_runs,
    )


def time_seek(order: Order, config: Config, step: int) -> Seek:
    positions = np.arange(step * config.samples_per_step, (step + 1) * config.samples_per_step)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        order.at(positions)
        seconds.append(time.perf_counter() - start)
    return Seek(step, *seconds)


def places_of_all_ranks(config: Config, num_ranks: int) -> np.ndarray:
    """Returns (ranks, samples of a rank): the places of a step's samples that each rank reads."""
    samples, group = config.samples_per_step, config.group_size
    return np.stack([rank_places(samples, group, rank, num_ranks) for rank in range(num_ranks)])
