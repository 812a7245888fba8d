"""Who takes part: ranks, and the nodes that they are on."""

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Tells machines of one name apart."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One host of the launch.

    Attributes:
        name: its host name, with `#2` behind where several machines have it.
        number: 0 for the node of rank 0.
        cpus: that its ranks may use, per rank.
    """

    name: str
    number: int
    ranks: tuple[int, ...]
    cpus: tuple[frozenset[int], ...]

    @property
    def first_rank(self) -> int:
        return self.ranks[0]


def introduce() -> dict[str, Any]:
    """Returns what a rank says about itself first."""
    return {"host": socket.gethostname(), "boot": BOOT_ID.read_text().strip(), "cpus": sorted(os.sched_getaffinity(0))}


def nodes_of(hellos: Mapping[int, Mapping[str, Any]]) -> list[Node]:
    """Groups ranks by machine, in the order of their first ranks."""
    machines: dict[tuple[str, str], list[int]] = {}
    for rank in sorted(hellos):
        machines.setdefault((hellos[rank]["host"], hellos[rank]["boot"]), []).append(rank)
    seen: Counter[str] = Counter()
    nodes = []
    for number, ((host, _), ranks) in enumerate(machines.items()):
        seen[host] += 1
        name = host if seen[host] == 1 else f"{host}#{seen[host]}"
        cpus = tuple(frozenset(hellos[rank]["cpus"]) for rank in ranks)
        nodes.append(Node(name=name, number=number, ranks=tuple(ranks), cpus=cpus))
    return nodes


def where(rank: int, nodes: Sequence[Node]) -> str:
    """Returns `rank 3 (n2)`."""
    return f"{ranks_in_words([rank])} ({next(node.name for node in nodes if rank in node.ranks)})"


def counted(number: int, noun: str) -> str:
    """Returns `1 rank` or `8 ranks`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Returns `rank 3`, or `ranks 0-3, 8`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"
