"""What only all nodes together can say: pure functions of what each of them reported."""

from collections.abc import Mapping, Sequence

from avff.config import Config
from avff.doctor.check import Check, Measure, fail, ok, warn
from avff.doctor.nodes import Node, counted, ranks_in_words
from avff.errors import ConfigError

SKEW_WARN_SECONDS = 1.0
SKEW_FAIL_SECONDS = 60.0
"""Authentication (munge, TLS) refuses clocks that are some minutes apart."""


def attendance(present: Sequence[int], world_size: int) -> Check:
    """Says which ranks never came."""
    missing = sorted(set(range(world_size)) - set(present))
    if not missing:
        return ok(f"all {world_size} here" if world_size > 1 else "one process")
    return fail(
        f"{ranks_in_words(missing)} of {world_size} did not come",
        "look at their nodes' output: did the launcher start them, can they reach MASTER_ADDR and its port?",
    )


def batch(config: Config, world_size: int) -> Check:
    """Says whether the config's batch divides over the ranks."""
    try:
        steps = config.accumulation_steps(world_size)
    except ConfigError as error:
        return fail(str(error), "change the number of ranks, or the batch as the message says")
    engine = config.engine
    return ok(f"{engine.global_batch_size} clips = {counted(world_size, 'rank')} x {steps} x {engine.micro_batch_size}")


def agreement(facts: Mapping[str, Mapping[str, str]]) -> Check:
    """Compares what has to be the same on every node.

    Args:
        facts: node -> name -> value; a node that could not find one out leaves it away.
    """
    names = list(dict.fromkeys(name for of_node in facts.values() for name in of_node))
    differing = []
    for name in names:
        nodes_of: dict[str, list[str]] = {}
        for node, of_node in facts.items():
            if name in of_node:
                nodes_of.setdefault(of_node[name], []).append(node)
        if len(nodes_of) > 1:
            differing.append(f"{name}: " + ", ".join(f"{value} on {' '.join(on)}" for value, on in nodes_of.items()))
    if differing:
        return fail("; ".join(differing), "use one environment, one checkout and one copy of the shards on all nodes")
    return ok(f"{len(names)} versions, sources and manifests are the same on {len(facts)} nodes")


def clocks(offsets_seconds: Mapping[str, float]) -> Check:
    """Compares the nodes' clocks.

    Args:
        offsets_seconds: node -> its clock less that of the first node, both read when one message was there.
    """
    worst = max(offsets_seconds, key=lambda node: abs(offsets_seconds[node]))
    skew_seconds = abs(offsets_seconds[worst])
    measure = Measure("apart", 1000 * skew_seconds, "ms")
    fix = f"let the administrators look at the time service of {worst} (chronyc tracking, timedatectl)"
    if skew_seconds > SKEW_FAIL_SECONDS:
        return fail(f"{worst} is off: SLURM and TLS refuse such clocks", fix, measure)
    if skew_seconds > SKEW_WARN_SECONDS:
        return warn(f"{worst} is off: times in logs will not fit together", fix, measure)
    return ok("all nodes agree", measure)


def cpus(node: Node, num_workers: int) -> Check:
    """Compares the cores that a node's ranks may use with their processes."""
    num_cores, num_ranks = len(frozenset().union(*node.cpus)), len(node.ranks)
    processes = num_ranks * (1 + num_workers)
    value = f"{counted(num_cores, 'core')} for {counted(num_ranks, 'rank')} of 1 + {num_workers} processes"
    fix = (
        f"ask for {1 + num_workers} per rank (SLURM: --cpus-per-task, and SRUN_CPUS_PER_TASK for srun inside of sbatch), "
        f"or data.num_workers={max(0, num_cores // num_ranks - 1)}"
    )
    if num_cores < num_ranks:
        return fail(value, fix)
    return warn(value, fix) if num_cores < processes else ok(value)


def shared_from_all(missing: Sequence[str], folder: str) -> Check:
    """Says whose writing rank 0 does not see.

    Args:
        missing: names of nodes.
    """
    if missing:
        return fail(
            f"{folder}: the first node does not see what {' '.join(missing)} writes",
            "set runs_dir to a folder on a file system that all nodes mount",
        )
    return ok("what every node writes is seen by the first")
