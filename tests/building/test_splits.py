"""No person and no original video on two sides."""

from pathlib import Path

import numpy as np
import pytest

from avff.building.sources import Source
from avff.building.splits import assign_splits, check_splits, drop_straddling
from avff.errors import ConfigError


def source(name: str, groups: tuple[str, ...] = (), split="") -> Source:
    return Source(path=Path(name), name=name, source_key=name, group_ids=groups, split=split)


def groups_of(sources, split: str) -> set[str]:
    return {group for s in sources if s.split == split for group in s.group_ids}


def test_group_in_two_splits_is_refused():
    check_splits([source("a", ("p1",), "train"), source("b", ("p1", "p2"), "train"), source("c", ("p3",), "test")])
    with pytest.raises(
        ConfigError, match=r"1 groups lie in two splits.*a group in two splits.*'p1' in 'test', 'train'"
    ):
        check_splits([source("a", ("p1",), "train"), source("b", ("p1", "p2"), "test")])


def test_automatic_split_keeps_together_what_hangs_together():
    # Pairs of persons; clips of both join them.
    sources = [source(f"c{n}", (f"p{2 * (n % 100)}", f"p{2 * (n % 100) + 1}")) for n in range(300)]
    sources += [source(f"s{n}", (f"p{n}",)) for n in range(200)]
    chosen = assign_splits(sources, val_fraction=0.2, test_fraction=0.3)
    check_splits(chosen)
    shares = [sum(s.split == name for s in chosen) / len(chosen) for name in ("train", "val", "test")]
    assert np.abs(np.array(shares) - [0.5, 0.2, 0.3]).max() < 0.12


def test_automatic_split_of_a_clip_does_not_depend_on_other_clips():
    few = assign_splits([source("a"), source("b")], 0.3, 0.3)
    many = assign_splits([source(name) for name in "edcba"], 0.3, 0.3)
    assert {s.name: s.split for s in few}.items() <= {s.name: s.split for s in many}.items()


def test_dropping_straddlers_leaves_disjoint_splits():
    rng = np.random.default_rng(0)
    people = {f"p{n}": ("train", "val", "test")[n % 3] for n in range(30)}
    sources = [source(f"real {person} {n}", (person,), split) for person, split in people.items() for n in range(3)]
    for n in range(60):
        a, b = rng.choice(sorted(people), 2, replace=False)
        sources.append(source(f"fake {n}", (a, b), people[a]))
    kept, dropped = drop_straddling(sources)
    check_splits(kept)
    assert len(kept) + len(dropped) == len(sources) and dropped
    assert all(people[s.group_ids[0]] != people[s.group_ids[1]] for s in dropped)
    assert not groups_of(kept, "train") & (groups_of(kept, "val") | groups_of(kept, "test"))
