"""Every window of every stored sample, once, in order, decoded by worker processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from avff.batch import Clip
from avff.data.selection import StoredSample
from avff.data.shards import read_sample
from avff.data.views import AVView
from avff.errors import ShardError

T = TypeVar("T")
SILENCE_LEVEL = 5e-4
"""Below this a 16-bit sample counts as silent (AVFF-SPEC §1.4)."""


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
    windows: list[Clip]
    leading_silence_seconds: float | None
    seconds: float
    problem: str | None


def load_samples(samples: Sequence[StoredSample], view: AVView, *, num_workers: int) -> Iterator[LoadedSample]:
    """Yields every sample in order; an unreadable one comes with its problem and is never replaced."""
    return map_samples(samples, partial(_load, view), num_workers=num_workers)


def map_samples(
    samples: Sequence[StoredSample], function: Callable[[int, StoredSample], T], *, num_workers: int
) -> Iterator[T]:
    """Yields `function(position, sample)` for every sample, in order, computed by worker processes.

    Args:
        num_workers: 0 computes in this process. No effect on what comes.
    """
    loader = DataLoader(
        _Mapped(samples, function),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_is,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_one_thread,
    )
    yield from loader


def leading_silence_seconds(waveform_N: np.ndarray, sample_rate_hz: int) -> float:
    """Returns how long the sound stays below SILENCE_LEVEL from its start."""
    loud = np.flatnonzero(np.abs(waveform_N) >= SILENCE_LEVEL)
    return float(loud[0] if len(loud) else len(waveform_N)) / sample_rate_hz


def opening_silence(windows: Sequence[Clip], sample_rate_hz: int) -> float | None:
    """Returns the leading silence of the window that opens the sample, None where no window does."""
    opening = next((clip for clip in windows if clip.start_seconds == 0), None)
    return None if opening is None else leading_silence_seconds(opening.waveform_N, sample_rate_hz)


def _load(view: AVView, position: int, stored: StoredSample) -> LoadedSample:
    start = time.perf_counter()
    try:
        windows, problem = view.evaluation_clips(read_sample(*stored)), None
    except ShardError as error:
        windows, problem = [], str(error)
    silence = opening_silence(windows, view.clip.sample_rate_hz)
    return LoadedSample(position, windows, silence, time.perf_counter() - start, problem)


class _Mapped(Dataset):
    def __init__(self, samples: Sequence[StoredSample], function: Callable[[int, StoredSample], Any]):
        self.samples = samples
        self.function = function

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Any:
        return self.function(position, self.samples[position])


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _as_is(value: Any) -> Any:
    # The default would turn every NumPy array into a tensor.
    return value
