"""Confidence intervals that resample people, not clips.

Clips of one person or cut from one original are not independent, so a resample draws whole groups. Groups are the
connected components of `group_ids`. Face swaps join two persons, and in a densely swapped set everything hangs together;
then ids are drawn one by one and a clip counts as often as the product of its ids' draws (Owen & Eckles 2012,
"Bootstrapping data arrays of arbitrary order": slightly wide, never too narrow).

Resamples are keyed by the seed and by the groups alone, so two detectors scored on the same clips share them: that
is what makes a difference paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from avff.evaluation.metrics import Metric, check
from avff.seeding import generator

NUM_RESAMPLES = 2000
MIN_COMPONENTS = 10
"""Fewer connected components than this, and ids are resampled one by one where there are more of them."""
_CHUNK_ELEMENTS = 4_000_000


class Groups(NamedTuple):
    """Which resampled units each clip belongs to.

    Attributes:
        unit_ids: names of the units that are drawn: components (named by their first id) or single ids.
        units_of_clip: per clip the indices of its units; one each for components.
        method: `components` or `crossed_ids`.
    """

    unit_ids: tuple[str, ...]
    units_of_clip: tuple[tuple[int, ...], ...]
    method: str


class Interval(NamedTuple):
    """A 95 % bootstrap interval; None with a reason where it cannot be had.

    Attributes:
        num_undefined: resamples in which the metric had no value, such as a class that was not drawn.
    """

    low: float | None
    high: float | None
    num_undefined: int
    reason: str | None


def make_groups(group_ids: Sequence[Sequence[str]]) -> Groups:
    """Joins clips that share a person or an original.

    Args:
        group_ids: per clip; a clip that names none counts as a group of its own.
    """
    named = [tuple(dict.fromkeys(ids)) or (f"clip {index} alone",) for index, ids in enumerate(group_ids)]
    all_ids = sorted({name for ids in named for name in ids})
    component = components(named)
    roots = sorted(set(component.values()))
    if len(roots) >= min(MIN_COMPONENTS, len(all_ids)):
        index = {root: i for i, root in enumerate(roots)}
        return Groups(tuple(roots), tuple((index[component[ids[0]]],) for ids in named), "components")
    index = {name: i for i, name in enumerate(all_ids)}
    return Groups(tuple(all_ids), tuple(tuple(index[name] for name in ids) for ids in named), "crossed_ids")


def interval(
    metric: Metric,
    scores_N: np.ndarray,
    labels_N: np.ndarray,
    groups: Groups,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Returns the central 95 % of a metric over resampled groups."""
    scores_N, labels_N = check(scores_N, labels_N)
    return _percentiles(_resample(metric, scores_N, labels_N, groups, seed, num_resamples), groups)


def difference_interval(
    metric: Metric,
    first_N: np.ndarray,
    second_N: np.ndarray,
    labels_N: np.ndarray,
    groups: Groups,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Returns the central 95 % of `metric(first) - metric(second)` of two detectors on the same clips.

    Args:
        first_N, second_N: scores of the two detectors, clip by clip in one order.
    """
    first_N, labels_N = check(first_N, labels_N)
    second_N, _ = check(second_N, labels_N)
    values = _resample(metric, first_N, labels_N, groups, seed, num_resamples)
    return _percentiles(values - _resample(metric, second_N, labels_N, groups, seed, num_resamples), groups)


def draw_units(groups: Groups, seed: int, num_resamples: int) -> np.ndarray:
    """Returns how often each unit is drawn in each resample, (num_resamples, units); each row sums to the units."""
    num_units = len(groups.unit_ids)
    rng = generator("bootstrap", seed, num_units)
    return rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples)


def clip_weights(groups: Groups, drawn_RG: np.ndarray) -> np.ndarray:
    """Returns how often each clip counts, (R, N) float64: the product of its units' draws."""
    num_units = len(groups.unit_ids)
    width = max(map(len, groups.units_of_clip))
    # A column of ones is the neutral factor for clips with fewer ids than the longest.
    factors_RG = np.hstack([drawn_RG.astype(np.float64), np.ones((len(drawn_RG), 1))])
    padded_NW = np.array([ids + (num_units,) * (width - len(ids)) for ids in groups.units_of_clip])
    weights_RN = np.ones((len(drawn_RG), len(padded_NW)))
    for units_N in padded_NW.T:
        weights_RN *= factors_RG[:, units_N]
    return weights_RN


def _resample(
    metric: Metric, scores_N: np.ndarray, labels_N: np.ndarray, groups: Groups, seed: int, num_resamples: int
) -> np.ndarray:
    drawn_RG = draw_units(groups, seed, num_resamples)
    rows = max(1, _CHUNK_ELEMENTS // len(scores_N))
    chunks = [drawn_RG[start : start + rows] for start in range(0, num_resamples, rows)]
    return np.concatenate([metric(scores_N, labels_N, clip_weights(groups, chunk_RG)) for chunk_RG in chunks])


def _percentiles(values_R: np.ndarray, groups: Groups) -> Interval:
    if len(groups.unit_ids) < 2:
        return Interval(None, None, 0, "all clips belong to one group")
    defined = values_R[np.isfinite(values_R)]
    num_undefined = len(values_R) - len(defined)
    if len(defined) < len(values_R) / 2:
        return Interval(None, None, num_undefined, f"undefined in {num_undefined} of {len(values_R)} resamples")
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(low), float(high), num_undefined, None)


def components(named: Sequence[Sequence[str]]) -> dict[str, str]:
    """Returns {id: smallest id of its component}: ids that some clip names together are in one.

    Args:
        named: ids per clip.
    """
    parent = {name: name for ids in named for name in ids}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for ids in named:
        for name in ids[1:]:
            first, second = sorted((root(ids[0]), root(name)))
            parent[second] = first
    return {name: root(name) for name in parent}
