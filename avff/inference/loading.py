"""Every window of every stored sample, once, in order, decoded by worker processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from avff.config import FaultsConfig
from avff.data.samples import Sample
from avff.data.selection import StoredSample
from avff.data.shards import read_sample
from avff.data.stream import place_of
from avff.data.worker_process import Job, Slot
from avff.data.workers import read_in_order
from avff.errors import ShardError

T = TypeVar("T")
DECODE_TIMEOUT_SECONDS = FaultsConfig.decode_timeout_seconds
PREFETCH = 4
SILENCE_LEVEL = 5e-4
"""Below this a 16-bit sample counts as silent (docs/method.md)."""


class EvaluationView(Protocol):
    """How a detector looks at a stored sample. Its clips are of its own type, with `key`, `track`, `start_seconds`, and
    `waveform_N` at the stored rate."""

    def evaluation_clips(self, sample: Sample) -> list: ...


class LoadedSample(NamedTuple):
    """One stored sample, ready to score.

    Attributes:
        position: in the list that was asked for.
        windows: of all tracks; none where the sample is undecided.
        leading_silence_seconds: in the window at the sample's start, None without one.
        seconds: spent reading and decoding.
        problem: why the sample could not be read, else None.
    """

    position: int
    windows: list[Any]
    leading_silence_seconds: float | None
    seconds: float
    problem: str | None


def load_samples(
    samples: Sequence[StoredSample],
    view: EvaluationView,
    *,
    num_workers: int,
    timeout_seconds: float = DECODE_TIMEOUT_SECONDS,
) -> Iterator[LoadedSample]:
    """Yields every sample in order; one that cannot be read comes with its problem and is never replaced.

    Args:
        num_workers: 0 decodes in this process, where no time-out is possible. No effect on what comes.
        timeout_seconds: longest that one sample may take.
    """

    def load(position: int, slot: Slot) -> LoadedSample:
        start = time.perf_counter()
        windows: list[Any] = []
        silence = problem = None
        try:
            with slot.reading(place_of(position, samples[position])):
                sample = read_sample(*samples[position])
                windows = view.evaluation_clips(sample)
            silence = opening_silence(windows, sample.metadata.audio.sample_rate_hz)
        except ShardError as error:
            problem = str(error)
        return LoadedSample(position, windows, silence, time.perf_counter() - start, problem)

    return _read(load, samples, num_workers, timeout_seconds)


def map_samples(
    samples: Sequence[StoredSample],
    function: Callable[[StoredSample], T],
    *,
    num_workers: int,
    timeout_seconds: float = DECODE_TIMEOUT_SECONDS,
) -> Iterator[T]:
    """Yields `function(sample)` for every sample, in order, computed by worker processes.

    Args:
        num_workers, timeout_seconds: as for `load_samples`.

    Raises:
        ShardError: a sample cannot be read.
    """

    def compute(position: int, slot: Slot) -> T:
        with slot.reading(place_of(position, samples[position])):
            return function(samples[position])

    return _read(compute, samples, num_workers, timeout_seconds)


def _read(job: Job, samples: Sequence[StoredSample], num_workers: int, timeout_seconds: float) -> Iterator[Any]:
    positions = range(len(samples))
    return read_in_order(job, positions, num_workers=num_workers, prefetch=PREFETCH, timeout_seconds=timeout_seconds)


def leading_silence_seconds(waveform_N: np.ndarray, sample_rate_hz: int) -> float:
    """Returns how long the sound stays below SILENCE_LEVEL from its start."""
    loud = np.flatnonzero(np.abs(waveform_N) >= SILENCE_LEVEL)
    return float(loud[0] if len(loud) else len(waveform_N)) / sample_rate_hz


def opening_silence(windows: Sequence[Any], sample_rate_hz: int) -> float | None:
    """Returns the leading silence of the window that opens the sample, None where no window does."""
    opening = next((clip for clip in windows if clip.start_seconds == 0), None)
    return None if opening is None else leading_silence_seconds(opening.waveform_N, sample_rate_hz)
