"""How well a plan shuffles, in statistics that are compared with a perfect shuffle of the same epoch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from avff.data.plan import Plan, shard_numbers
from avff.data.selection import StoredSample
from avff.seeding import permutation

_MAX_EXCESS = 0.2
_NOISE = 3.0


class Statistic(NamedTuple):
    """One number about an epoch; 0 or `perfect` is best and 1 is worst.

    Attributes:
        perfect: what a perfect shuffle of the same clips gives.
        limit: largest value that is not poor; beyond 1 where the epoch is too short to tell.
        meaning: what is counted, as a sentence.
    """

    name: str
    value: float
    perfect: float
    limit: float
    meaning: str

    @property
    def is_poor(self) -> bool:
        return self.value > self.limit


def shuffle_quality(plan: Plan, epoch: int = 0) -> list[Statistic]:
    """Returns how far an epoch's order is from what is stored, from the next epoch's, and from clumping."""
    count = plan.num_samples
    sample_N = plan.order.at(np.arange(count) + epoch * count).sample
    next_N = plan.order.at(np.arange(count) + (epoch + 1) * count).sample
    shard_M = shard_numbers(plan.samples)
    shard_N = shard_M[sample_N]
    return [
        stored_correlation(sample_N, shard_N),
        within_shard_correlation(sample_N, shard_N),
        epoch_correlation(sample_N, next_N, _count(shard_M)),
        *(
            neighbours(name, _codes(plan.samples, value)[sample_N])
            for name, value in (
                ("directory", lambda sample: id(sample.directory)),
                ("source video", lambda sample: (id(sample.directory), sample.row.source_key)),
                ("category", lambda sample: sample.row.category),
            )
        ),
        neighbours("shard", shard_N),
        batch_concentration(shard_N, plan.samples_per_step),
    ]


def stored_correlation(sample_N: np.ndarray, shard_N: np.ndarray) -> Statistic:
    """Spearman's rank correlation between the stored place of each clip and its place in the epoch.

    Args:
        sample_N: sample numbers, which follow the stored order, in the order of reading.
        shard_N: number of the shard of each.
    """
    value = abs(_correlation(_ranks(sample_N), np.arange(len(sample_N))))
    return Statistic(
        "correlation with the stored order",
        value,
        0.0,
        _limit(0.0, _count(shard_N)),
        "Spearman's rank correlation, without its sign, between where clips are stored and when they are read; 1 is "
        "reading them as stored, or backwards",
    )


def within_shard_correlation(sample_N: np.ndarray, shard_N: np.ndarray) -> Statistic:
    """The same as `stored_correlation`, with places counted from the mean of the clip's shard."""
    value = abs(_correlation(_less_mean(_ranks(sample_N), shard_N), _less_mean(np.arange(len(sample_N)), shard_N)))
    return Statistic(
        "the same, inside shards",
        value,
        0.0,
        _limit(0.0, len(sample_N)),
        "the same with both places counted from the mean of the clip's shard; 1 is shards shuffled, but not their clips",
    )


def epoch_correlation(sample_N: np.ndarray, next_N: np.ndarray, num_shards: int) -> Statistic:
    """Rank correlation between the places of the clips in one epoch and in the next.

    Args:
        sample_N, next_N: sample numbers in the order of reading.
        num_shards: that the samples are in.
    """
    num_samples = int(max(sample_N.max(), next_N.max())) + 1
    here_M, there_M = _mean_place(sample_N, num_samples), _mean_place(next_N, num_samples)
    both_M = ~np.isnan(here_M + there_M)
    value = abs(_correlation(_ranks(here_M[both_M]), _ranks(there_M[both_M])))
    return Statistic(
        "correlation with the next epoch",
        value,
        0.0,
        _limit(0.0, min(num_shards, int(both_M.sum()))),
        "the rank correlation between one epoch's order and the next one's; 1 is the same order in every epoch",
    )


def neighbours(name: str, code_N: np.ndarray) -> Statistic:
    """Share of clips that are followed by one of the same kind.

    Args:
        name: of the kind.
        code_N: the kind of each clip as a number, in the order of reading.
    """

    def share(code_N: np.ndarray) -> float:
        return float((code_N[1:] == code_N[:-1]).mean()) if len(code_N) > 1 else 0.0

    perfect = share(_shuffled(code_N))
    return Statistic(
        f"neighbours of one {name}",
        share(code_N),
        perfect,
        _limit(perfect, len(code_N)),
        f"share of clips after which one of the same {name} is read",
    )


def batch_concentration(code_N: np.ndarray, global_batch_size: int) -> Statistic:
    """Mean share of a batch that comes from the shard which gives most.

    Args:
        code_N: shard number of each clip, in the order of reading.
    """
    size = min(global_batch_size, len(code_N))

    def share(code_N: np.ndarray) -> float:
        batches = code_N[: len(code_N) // size * size].reshape(-1, size)
        return float(np.mean([np.bincount(batch).max() for batch in batches])) / size

    perfect = share(_shuffled(code_N))
    return Statistic(
        "largest shard of a batch",
        share(code_N),
        perfect,
        _limit(perfect, len(code_N) // size),
        "share of a batch that comes from the shard which gives most, mean over batches",
    )


def _limit(perfect: float, num_observations: int) -> float:
    """A fifth of the way from perfect to worst, and three standard deviations of so many observations more.

    Shards are what correlations are counted over: they move as a whole where the window is one shard, and few of them
    can stand almost as stored by chance.
    """
    return perfect + (1 - perfect) * _MAX_EXCESS + _NOISE / math.sqrt(max(1, num_observations))


def _shuffled(code_N: np.ndarray) -> np.ndarray:
    return code_N[permutation(len(code_N), "perfect shuffle")]


def _codes(samples: list[StoredSample], value: Callable[[StoredSample], object]) -> np.ndarray:
    """Returns one number per sample, equal where the values are."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value(sample), len(numbers)) for sample in samples])


def _ranks(value_N: np.ndarray) -> np.ndarray:
    """Returns ranks from 0; equal values share their mean rank."""
    _, inverse_N, count = np.unique(value_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[inverse_N]


def _count(code_N: np.ndarray) -> int:
    return len(np.unique(code_N))


def _less_mean(value_N: np.ndarray, code_N: np.ndarray) -> np.ndarray:
    """Subtracts from each value the mean over its kind."""
    _, kind_N, count = np.unique(code_N, return_inverse=True, return_counts=True)
    return value_N - (np.bincount(kind_N, value_N) / count)[kind_N]


def _correlation(x_N: np.ndarray, y_N: np.ndarray) -> float:
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    norm = math.sqrt(float(x_N @ x_N) * float(y_N @ y_N))
    return float(x_N @ y_N) / norm if norm else 0.0


def _mean_place(sample_N: np.ndarray, num_samples: int) -> np.ndarray:
    """Returns where each sample is read on average; NaN for those that are not."""
    with np.errstate(invalid="ignore"):
        return np.bincount(sample_N, np.arange(len(sample_N)), num_samples) / np.bincount(
            sample_N, minlength=num_samples
        )
