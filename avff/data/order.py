"""The order of samples, as arithmetic alone: which sample stands at position p of the endless line.

    epoch line    shards shuffled, samples permuted inside windows of W shards
    runs          the line cut into C runs, equal to within one sample
    position p    epoch e = p // N, j = p % N, read from run j % C at offset j // C

N, the samples per epoch, is the same in every epoch, so p alone says where everything is: nothing is replayed.
"""

import math
from typing import NamedTuple

import numpy as np

from avff.errors import ConfigError
from avff.seeding import derive_seed, hash_counters, permutation

_UNIT = 1 << 24
_SNAP = 2.0**-16
_CACHED_EPOCHS = 2
_MAX_REPEATS = 1 << 16


class Places(NamedTuple):
    """What stands at some positions of the line, one entry per position.

    Attributes:
        epoch: int64.
        sample: int64, index into the samples.
        occurrence: int64, how often the sample came before in the same epoch.
    """

    epoch: np.ndarray
    sample: np.ndarray
    occurrence: np.ndarray


class Order:
    """A pure function from positions to samples.

    A weighted epoch has floor(sum of weights) samples.

    Args:
        shard_M: int64 shard number of each sample; samples of a shard need not be neighbours.
        weight_M: float64, how often each sample comes per epoch: floor(weight) times and, chosen anew in each
            epoch, once more for the fraction. At least one sample.
        seed: decides everything random here.
        window_shards: W.
        num_runs: C.

    Raises:
        ConfigError: a weight is absurdly large, or all together give no whole sample.
    """

    def __init__(self, shard_M: np.ndarray, weight_M: np.ndarray, *, seed: int, window_shards: int, num_runs: int):
        if weight_M.max() > _MAX_REPEATS:
            raise ConfigError(f"a sampling weight is {weight_M.max()}; it cannot be above {_MAX_REPEATS}")
        self._seed = seed
        self._window_shards = window_shards
        self._num_runs = num_runs
        self._shard_M = shard_M
        # A fraction this close to a whole number is rounding noise of balanced weights.
        self._whole_M = np.floor(weight_M + _SNAP).astype(np.int64)
        fraction_M = np.maximum(weight_M - self._whole_M, 0.0)
        self._fraction_M = np.where(fraction_M < _SNAP, 0.0, fraction_M)
        self._num_extra = int(math.fsum(self._fraction_M) + 1e-6)
        self.samples_per_epoch = int(self._whole_M.sum()) + self._num_extra
        if self.samples_per_epoch == 0:
            raise ConfigError(
                f"the sampling weights of {len(weight_M)} samples add up to {weight_M.sum():.3g}, so an epoch would be "
                "empty; raise data.train weights"
            )
        self._lines: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def at(self, positions: np.ndarray) -> Places:
        """Returns what stands at the positions; fast where they lie in few epochs."""
        count = self.samples_per_epoch
        epoch_P, inside_P = positions // count, positions % count
        run_P, offset_P = inside_P % self._num_runs, inside_P // self._num_runs
        # The first count % C runs are one longer, so that every j in [0, N) has a place.
        place_P = run_P * (count // self._num_runs) + np.minimum(run_P, count % self._num_runs) + offset_P
        sample_P, occurrence_P = np.empty_like(place_P), np.empty_like(place_P)
        for epoch in np.unique(epoch_P):
            here_P = epoch_P == epoch
            line_sample, line_occurrence = self._line(int(epoch))
            sample_P[here_P] = line_sample[place_P[here_P]]
            occurrence_P[here_P] = line_occurrence[place_P[here_P]]
        return Places(epoch_P, sample_P, occurrence_P)

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns sample and occurrence at every place of an epoch's line."""
        if epoch not in self._lines:
            while len(self._lines) >= _CACHED_EPOCHS:
                del self._lines[next(iter(self._lines))]
            self._lines[epoch] = self._make_line(epoch)
        return self._lines[epoch]

    def _make_line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        count_M = self._whole_M.copy()
        count_M[self._extra_samples(epoch)] += 1
        sample_N = np.repeat(np.arange(len(count_M)), count_M)
        occurrence_N = np.arange(len(sample_N)) - np.repeat(np.cumsum(count_M) - count_M, count_M)
        num_shards = int(self._shard_M.max()) + 1
        rank_of_shard = np.argsort(permutation(num_shards, self._seed, "shards", epoch))
        window_N = rank_of_shard[self._shard_M[sample_N]] // self._window_shards
        hash_N = hash_counters(np.arange(len(sample_N), dtype=np.uint64), self._seed, "samples", epoch)
        line_N = np.lexsort((hash_N, window_N))
        return sample_N[line_N], occurrence_N[line_N]

    def _extra_samples(self, epoch: int) -> np.ndarray:
        """Chooses the samples that come once more in this epoch, each with the chance of its fraction.

        Fractions are laid end to end in shuffled order and hit by points one unit apart (systematic sampling):
        exactly `num_extra` hits, and none twice, since every fraction is shorter than a unit.
        """
        if self._num_extra == 0:
            return np.empty(0, dtype=np.int64)
        shuffled_M = permutation(len(self._fraction_M), self._seed, "fractions", epoch)
        stop_M = np.cumsum(self._fraction_M[shuffled_M])
        stop_M = np.rint(stop_M * (self._num_extra / stop_M[-1]) * _UNIT).astype(np.int64)
        start = derive_seed(self._seed, "first fraction", epoch) % _UNIT
        points = start + np.arange(self._num_extra, dtype=np.int64) * _UNIT
        return shuffled_M[np.searchsorted(stop_M, points, side="right")]
