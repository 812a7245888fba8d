"""Every window of every stored sample, once, in order, decoded by worker processes."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from avff.batch import Clip
from avff.data.selection import StoredSample
from avff.data.shards import read_sample
from avff.data.views import AVView
from avff.errors import ShardError

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
    loader = DataLoader(
        _Samples(samples, view),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_is,
        prefetch_factor=4 if num_workers else None,
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


class _Samples(Dataset):
    def __init__(self, samples: Sequence[StoredSample], view: AVView):
        self.samples = samples
        self.view = view

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> LoadedSample:
        torch.set_num_threads(1)
        start = time.perf_counter()
        try:
            windows, problem = self.view.evaluation_clips(read_sample(*self.samples[index])), None
        except ShardError as error:
            windows, problem = [], str(error)
        silence = opening_silence(windows, self.view.clip.sample_rate_hz)
        return LoadedSample(index, windows, silence, time.perf_counter() - start, problem)


def _as_is(sample: Any) -> Any:
    # The default would turn every NumPy array into a tensor.
    return sample
