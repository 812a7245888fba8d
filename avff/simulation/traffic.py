"""What the ranks send each other in one update, under each ZeRO stage; counted in real runs by avff.simulation.check.

Everything travels in fp32, since the weights are their own masters (avff.engine.deepspeed_config).

    stage 0   gradients: one all-reduce after the last backward pass of an update
    stage 1   gradients: an all-reduce per bucket after the last backward pass; weights: an all-gather per optimizer group
    stage 2   gradients: an all-reduce per bucket and micro batch; weights as stage 1
    stage 3   gradients: a reduce-scatter per bucket and micro batch; weights: all-gathers before they are used, and of
              small parameters, which stay gathered, after the step

Source:
    DeepSpeed 0.19 as it was seen to run. ZeRO's paper has stage 2 reduce to the owner alone, half of an all-reduce;
    DeepSpeed's buckets of several owners (its default) are all-reduced.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from avff.config import Config
from avff.engine.deepspeed_config import deepspeed_config
from avff.simulation.cluster import Links
from avff.simulation.contrast import contrast_pairs
from avff.simulation.parameters import Sizes

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
KINDS: tuple[Kind, ...] = ("all_reduce", "all_gather", "reduce_scatter")
FP32_BYTES = 4
ALL_REDUCE_ELEMENTS = 500_000_000
"""DeepSpeed's bucket under stage 0, which no setting changes."""
PREFETCH_ELEMENTS = 50_000_000
PERSISTENT_ELEMENTS = 100_000
LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3's defaults: gathered ahead in one go; parameters up to this size stay gathered; most that are gathered at once."""


class Collective(NamedTuple):
    """Equal collectives of one update.

    Attributes:
        num_bytes: of the tensor that is reduced, of what all ranks have gathered, or of what is scattered.
        times: how often.
        what: gradients, weights, contrast.
        overlaps: whether it can run while a backward pass does.
    """

    kind: Kind
    num_bytes: int
    times: int
    what: str
    overlaps: bool = False

    def sent_bytes(self, num_ranks: int) -> float:
        """Bytes that each rank sends by the ring algorithm, all of them together."""
        return self.times * self.num_bytes * ring_share(self.kind, num_ranks)

    def seconds(self, links: Links, num_ranks: int) -> float:
        """Of all of them, one after the other; the faster of ring and tree, which libraries choose from for all-reduce."""
        if num_ranks == 1:
            return 0.0
        hop, bandwidth = links
        once = ring_hops(self.kind, num_ranks) * hop + ring_share(self.kind, num_ranks) * self.num_bytes / bandwidth
        if self.kind == "all_reduce":
            once = min(once, 2 * math.ceil(math.log2(num_ranks)) * hop + 2 * self.num_bytes / bandwidth)
        return self.times * once


def ring_share(kind: Kind, num_ranks: int) -> float:
    """Bytes that a rank sends over a ring, as a share of the tensor's."""
    return (num_ranks - 1) / num_ranks * (2 if kind == "all_reduce" else 1)


def ring_hops(kind: Kind, num_ranks: int) -> int:
    return (num_ranks - 1) * (2 if kind == "all_reduce" else 1)


def update_traffic(config: Config, trained: Sequence[Sizes], num_ranks: int) -> list[Collective]:
    """Returns what one update of the config's stage sends, given what it trains; nothing on one rank.

    Left out: a few numbers that the ranks agree on (one all-reduce of less than 200 bytes, and DeepSpeed's own norms).
    """
    if num_ranks == 1:
        return []
    micro_batches = config.accumulation_steps(num_ranks)
    found = list(_contrast(config, num_ranks))
    for sizes in trained:
        zero = deepspeed_config(config, world_size=num_ranks, zero_stage=sizes.zero_stage(config))["zero_optimization"]
        found += _TRAFFIC[sizes.zero_stage(config)](sizes, config, num_ranks, micro_batches, zero)
    return found


def _contrast(config: Config, num_ranks: int) -> Iterator[Collective]:
    """Embeddings: gathered forward, and their gradients summed by their owners backward."""
    pairs = contrast_pairs(config, num_ranks)
    if not pairs.embeddings:
        return
    num_bytes = FP32_BYTES * pairs.embeddings * config.model.encoder.width
    yield Collective("all_gather", num_bytes, pairs.products_per_update, "contrast")
    yield Collective("reduce_scatter", num_bytes, pairs.products_per_update, "contrast")


def _stage_0(
    sizes: Sizes, config: Config, num_ranks: int, micro_batches: int, zero: dict[str, Any]
) -> list[Collective]:
    return [_whole("all_reduce", bucket, 1, "gradients") for bucket in buckets(sizes.parameters, ALL_REDUCE_ELEMENTS)]


def _stage_1(
    sizes: Sizes, config: Config, num_ranks: int, micro_batches: int, zero: dict[str, Any]
) -> list[Collective]:
    return _stages_1_and_2(sizes, num_ranks, 1, zero)


def _stage_2(
    sizes: Sizes, config: Config, num_ranks: int, micro_batches: int, zero: dict[str, Any]
) -> list[Collective]:
    return _stages_1_and_2(sizes, num_ranks, micro_batches, zero)


def _stages_1_and_2(sizes: Sizes, num_ranks: int, times: int, zero: dict[str, Any]) -> list[Collective]:
    overlaps = zero.get("overlap_comm", False)
    backward = reversed(sizes.parameters)
    reduced = buckets(list(backward), zero["reduce_bucket_size"])
    return [
        *(_whole("all_reduce", bucket, times, "gradients", overlaps) for bucket in reduced),
        *(_whole("all_gather", group, 1, "weights") for group in sizes.padded_groups(num_ranks)),
    ]


def _stage_3(
    sizes: Sizes, config: Config, num_ranks: int, micro_batches: int, zero: dict[str, Any]
) -> list[Collective]:
    overlaps = zero.get("overlap_comm", True)
    padded = sizes.padded_parameters(num_ranks)
    fetched = [size for size in padded if size > PERSISTENT_ELEMENTS]
    # What fits stays gathered from the forward to the backward pass. A first pass without a backward one upsets the
    # order that DeepSpeed has learnt, so that every pass gathers for itself.
    two_passes = config.passes_per_group(num_ranks) > 1
    times = micro_batches * (3 if two_passes else 1 if sum(fetched) <= LIVE_ELEMENTS else 2)
    return [
        *(_whole("all_gather", run, times, "weights", overlaps) for run in buckets(fetched, PREFETCH_ELEMENTS)),
        *(
            _whole("reduce_scatter", bucket, micro_batches, "gradients", overlaps)
            for bucket in buckets(list(reversed(padded)), zero["reduce_bucket_size"])
        ),
        *(_whole("all_gather", size, 1, "weights") for size in padded if size <= PERSISTENT_ELEMENTS),
    ]


_TRAFFIC = {0: _stage_0, 1: _stage_1, 2: _stage_2, 3: _stage_3}


def _whole(kind: Kind, elements: int, count: int, what: str, overlaps: bool = False) -> Collective:
    return Collective(kind, FP32_BYTES * elements, count, what, overlaps)


def buckets(sizes: Sequence[int], limit: int) -> list[int]:
    """Returns the elements of each bucket: parameters in order, a new bucket where the next one would not fit."""
    filled: list[int] = []
    for size in sizes:
        if filled and filled[-1] + size <= limit:
            filled[-1] += size
        else:
            filled.append(size)
    return filled
