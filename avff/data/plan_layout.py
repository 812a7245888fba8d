"""Whether shards and batch suit the ranks and loader workers that are to read them; no effect on the order."""

from dataclasses import replace

import numpy as np

from avff.config import Config
from avff.data.plan import Plan, shard_numbers
from avff.errors import ConfigError

_UNEVEN = 3.0
_MAX_RANKS = 64
_NEAR_BATCHES = 2


def samples_per_shard(plan: Plan) -> np.ndarray:
    """Returns the planned samples of each shard that has any, int64."""
    return np.bincount(shard_numbers(plan.samples))


def layout_warnings(plan: Plan, config: Config, *, num_ranks: int, num_workers: int) -> list[str]:
    """Says what about the shards will slow reading down or shuffle weakly.

    Args:
        num_workers: loader processes per rank; 0 counts as one reader.
    """
    size_S = samples_per_shard(plan)
    num_readers, window = num_ranks * max(1, num_workers), config.data.shuffle_window_shards
    warnings = []
    if len(size_S) < num_readers:
        warnings.append(
            f"{len(size_S)} shards for {num_readers} readers ({num_ranks} ranks x {max(1, num_workers)} workers): several "
            "read one file at a time, which a network file system serves slowly; build smaller shards "
            "(tools/make_shards.py --shard-bytes)"
        )
    largest, median = int(size_S.max()), float(np.median(size_S))
    if largest > _UNEVEN * median:
        warnings.append(
            f"the largest shard gives {largest} samples, the median one {median:g}: most of its window is that one shard; "
            "build shards of even size, or raise data.shuffle_window_shards"
        )
    if window == 1 and len(size_S) > 1:
        warnings.append(
            "data.shuffle_window_shards is 1: samples change places within their own shard only; use 8, the default"
        )
    if plan.num_samples < plan.samples_per_step:
        warnings.append(
            f"an epoch of {plan.num_samples} samples is smaller than the {plan.samples_per_step} of a step: every "
            "batch holds samples more than once, which contrastive learning takes for different ones; lower "
            "engine.global_batch_size or add data"
        )
    return warnings


def working_ranks(config: Config) -> list[int]:
    """Returns the rank counts, up to 64, over which the config's batch divides."""
    engine = config.engine
    return [r for r in range(1, _MAX_RANKS + 1) if _works(config, engine.global_batch_size, engine.micro_batch_size, r)]


def working_micro_batches(config: Config, num_ranks: int) -> list[int]:
    """Returns the values of `engine.micro_batch_size` that divide the config's batch over the ranks."""
    batch = config.engine.global_batch_size
    return [micro for micro in range(1, batch // num_ranks + 1) if _works(config, batch, micro, num_ranks)]


def working_batches(config: Config, num_ranks: int) -> list[int]:
    """Returns the nearest values of `engine.global_batch_size` that divide over the ranks, the config's own included."""
    batch, micro = config.engine.global_batch_size, config.engine.micro_batch_size
    unit = num_ranks * micro
    multiples = [b for b in range(unit, 2 * batch + 16 * unit, unit) if _works(config, b, micro, num_ranks)]
    below = [b for b in multiples if b < batch][-_NEAR_BATCHES:]
    return below + [b for b in multiples if b >= batch][: _NEAR_BATCHES + 1]


def _works(config: Config, batch: int, micro: int, num_ranks: int) -> bool:
    try:
        engine = replace(config.engine, global_batch_size=batch, micro_batch_size=micro)
        return replace(config, engine=engine).accumulation_steps(num_ranks) > 0
    except ConfigError:
        return False
