"""What the ranks' measurements mean."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from avff.doctor.check import Check, Measure, fail, ok, warn
from avff.doctor.collective import Result
from avff.doctor.needs import bytes_in_words
from avff.doctor.nodes import Node, ranks_in_words, where

SLOW_GRADIENT_SECONDS = 1.0
"""Time per step that is lost to adding up gradients, at which the network wants to be looked at."""
STAGES = ("start", "join", "reduce", "links", "done")
SLOW_LINK_FACTOR = 0.5
SLOW_GPU_FACTOR = 0.8


def judge_all_reduce(
    results: Mapping[int, Result], nodes: Sequence[Node], gradient_bytes: int, has_fabric: bool
) -> Check:
    """Says whether all ranks could add up tensors, and how fast.

    Args:
        results: of every rank.
        gradient_bytes: that a training step adds up; 0 where no config is known.
        has_fabric: whether a node has InfiniBand cards.
    """
    if failed := {rank: result for rank, result in results.items() if result.error}:
        return _judge_failure(failed, nodes)
    first = results[min(results)]
    num_ranks = len(results)
    size, seconds = first.reduces[-1]
    per_second = bus_bytes_per_second(size, seconds, num_ranks)
    value = f"{num_ranks} ranks, {first.backend}" + (f" over {first.transport}" if first.transport else "")
    if num_ranks == 1:
        return ok(f"one rank on {first.device}, nothing to add up")
    latency_seconds = first.reduces[0][1]
    measures = (
        Measure(bytes_in_words(first.reduces[0][0]), 1000 * latency_seconds, "ms"),
        *(
            Measure(bytes_in_words(size), bus_bytes_per_second(size, seconds, num_ranks) / 1e9, "GB/s")
            for size, seconds in first.reduces[1:]
        ),
    )
    if has_fabric and first.transport.startswith("Socket"):
        return warn(
            f"{value}, though there are InfiniBand cards",
            "unset NCCL_IB_DISABLE, or NCCL_IB_HCA names no card here (NCCL_DEBUG=INFO says why), or load its libraries",
            *measures,
        )
    gradient_seconds = seconds_of(gradient_bytes, per_second, num_ranks)
    if gradient_bytes:
        value += f", gradients {bytes_in_words(gradient_bytes)}"
        measures += (Measure("each step", gradient_seconds, "s"),)
    if gradient_seconds > SLOW_GRADIENT_SECONDS:
        return warn(
            value,
            "use the fast network (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME), or larger batches per step",
            *measures,
        )
    return ok(value, *measures)


def bus_bytes_per_second(size_bytes: int, seconds: float, num_ranks: int) -> float:
    """Returns what each rank sends per second in a ring, which does not depend on the number of ranks (as nccl-tests)."""
    return 2 * (num_ranks - 1) / num_ranks * size_bytes / seconds


def seconds_of(size_bytes: int, bus_bytes_per_second: float, num_ranks: int) -> float:
    return 2 * (num_ranks - 1) / num_ranks * size_bytes / bus_bytes_per_second


def _judge_failure(failed: Mapping[int, Result], nodes: Sequence[Node]) -> Check:
    """Names the rank that came least far, or failed first; others mostly waited for it."""
    rank = min(failed, key=lambda rank: (STAGES.index(failed[rank].stage), failed[rank].seconds, rank))
    others = sorted(failed.keys() - {rank})
    also = f"; so did {ranks_in_words(others)}" if others else ""
    return fail(
        f"{where(rank, nodes)} failed at {failed[rank].stage!r}: {failed[rank].error}{also}",
        "check that nodes reach each other on any port (firewall), that GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name "
        "the cluster's network, and look with NCCL_DEBUG=INFO",
    )


def judge_links(results: Mapping[int, Result], nodes: Sequence[Node]) -> Check:
    """Names the links from node to node that are slow for their kind."""
    name_of = {node.first_rank: node.name for node in nodes}
    speeds = {
        f"{name_of[source]} to {name_of[rank]}": per_second
        for rank, result in sorted(results.items())
        for source, per_second in result.links
    }
    if not speeds:
        return ok("one node")
    median = statistics.median(speeds.values())
    measure = Measure("median", median / 1e9, "GB/s")
    slow = [f"{link} {speed / 1e9:.2f} GB/s" for link, speed in speeds.items() if speed < SLOW_LINK_FACTOR * median]
    if slow:
        return warn(
            f"slow: {', '.join(slow)}",
            "leave out the node that all of them share (SLURM: --exclude), or ask its administrators about its cable",
            measure,
        )
    return ok(f"{len(speeds)} links from node to node", measure)


def judge_devices(results: Mapping[int, Result], nodes: Sequence[Node]) -> Check:
    """Looks for ranks that share a GPU, and for GPUs that are slower than their kind."""
    for node in nodes:
        ids = Counter(results[rank].gpu_id for rank in node.ranks if rank in results and results[rank].gpu_id)
        if shared := [gpu_id for gpu_id, count in ids.items() if count > 1]:
            ranks = [rank for rank in node.ranks if results[rank].gpu_id == shared[0]]
            return fail(
                f"{ranks_in_words(ranks)} on {node.name} share {results[ranks[0]].device}, which NCCL refuses",
                "start one rank per GPU, and let each see all of them or one of its own (SLURM: --gpus-per-task=1)",
            )
    rates = {rank: result.teraflops for rank, result in results.items() if result.teraflops}
    if not rates:
        return ok("CPUs")
    median = statistics.median(rates.values())
    measure = Measure("bf16", median, "TFLOP/s")
    slow = [f"{where(r, nodes)} {rate:.0f} TFLOP/s" for r, rate in rates.items() if rate < SLOW_GPU_FACTOR * median]
    if slow:
        fix = "leave the node out, or look for heat and power limits there: nvidia-smi -q -d PERFORMANCE"
        return warn(f"slower than the others: {', '.join(slow)}", fix, measure)
    return ok(f"{len(rates)} GPUs compute alike", measure)
