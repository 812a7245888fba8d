"""Splits that share no person and no original video."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from avff.building.sources import Source
from avff.errors import ConfigError
from avff.schema import Split
from avff.seeding import derive_seed

logger = logging.getLogger(__name__)

# Ties go to the split that must not leak.
_PREFERENCE: dict[Split, int] = {"test": 0, "val": 1, "train": 2, "": 3}


def check_splits(sources: list[Source]) -> None:
    """Refuses a group that lies in two splits.

    Raises:
        ConfigError: names the groups and what to do.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        for group in source.group_ids:
            splits[group].add(source.split)
    mixed = [
        f"{group!r} in {', '.join(repr(s) for s in sorted(names))}"
        for group, names in sorted(splits.items())
        if len(names) > 1
    ]
    if mixed:
        raise ConfigError(
            f"{len(mixed)} groups lie in two splits, a group in two splits leaks from training into the test: "
            f"{'; '.join(mixed[:5])}; correct the split column, or add --drop-straddling to leave out the clips in between"
        )


def assign_splits(
    sources: list[Source], val_fraction: float, test_fraction: float, *, by_component: bool = True
) -> list[Source]:
    """Gives every source a split by a hash of its groups.

    Args:
        by_component: True keeps all clips that hang together through groups in one split; False hashes each group on
            its own, and clips whose groups disagree straddle (drop them with `drop_straddling`).
    """
    names = _components(sources) if by_component else [min(_groups(source)) for source in sources]
    chosen = [
        replace(s, split=_hashed_split(n, val_fraction, test_fraction)) for s, n in zip(sources, names, strict=True)
    ]
    counts = Counter(source.split for source in chosen)
    for split, fraction in (
        ("train", 1 - val_fraction - test_fraction),
        ("val", val_fraction),
        ("test", test_fraction),
    ):
        if fraction > 0 and not counts[split]:  # type: ignore[index]
            logger.warning(
                "the automatic split left %r empty: %d clips hang together in %d groups",
                split,
                len(sources),
                len(set(names)),
            )
    return chosen


def drop_straddling(sources: list[Source]) -> tuple[list[Source], list[Source]]:
    """Leaves out clips between splits: returns (kept, dropped).

    Every group gets the split of most of its clips (on a tie the later of train, val, test); a clip stays if that is
    its own split for all of its groups. So the kept splits are disjoint in every group.
    """
    votes: dict[str, Counter[Split]] = defaultdict(Counter)
    for source in sources:
        for group in source.group_ids:
            votes[group][source.split] += 1
    homes = {group: min(count, key=lambda split: (-count[split], _PREFERENCE[split])) for group, count in votes.items()}
    kept = [source for source in sources if all(homes[group] == source.split for group in source.group_ids)]
    dropped = [source for source in sources if any(homes[group] != source.split for group in source.group_ids)]
    return kept, dropped


def _hashed_split(name: str, val_fraction: float, test_fraction: float) -> Split:
    place = derive_seed("split", name) / 2**63
    if place < test_fraction:
        return "test"
    return "val" if place < test_fraction + val_fraction else "train"


def _groups(source: Source) -> tuple[str, ...]:
    return source.group_ids or (f"clip {source.name}",)


def _components(sources: Iterable[Source]) -> list[str]:
    """Smallest group name among all that hang together with each source's groups (union-find)."""
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        parent.setdefault(group, group)
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    firsts = []
    for source in sources:
        first, *others = _groups(source)
        firsts.append(first)
        root(first)
        for other in others:
            a, b = sorted((root(first), root(other)))
            parent[b] = a
    return [root(first) for first in firsts]
