"""The sound of a raw media file as one line of 16 kHz mono PCM16, by presentation time stamps."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avff.media.reader import MediaInfo, choose_stream, open_media

SAMPLE_RATE_HZ = 16000
_RESYNC_SECONDS = 0.01
"""Time stamps that differ by more from the sound counted so far start a new run at their own time."""


class AudioLine:
    """Reads consecutive stretches of sound; sample 0 lies at the first picture.

    Holds one stretch in memory. Sound before the first picture is cut, gaps and what lies before the first or after
    the last sound are silence, as a player plays them. Several channels are averaged as FFmpeg mixes them to mono.
    """

    def __init__(self, path: Path, info: MediaInfo):
        self._runs = _decode(path, info.video_start_seconds) if info.audio_start_seconds is not None else iter(())
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._position = 0

    def read(self, start: int, stop: int) -> np.ndarray | None:
        """Returns int16 samples [start, stop), or None if no sound of the source lies there.

        Args:
            start: not before the `stop` of the call before.
        """
        while self._position < stop and (block := next(self._runs, None)) is not None:
            self._waiting.append(block)
            self._position = max(self._position, block[0] + len(block[1]))
        samples, found = np.zeros(stop - start, dtype=np.int16), False
        for first, values in self._waiting:
            low, high = max(first, start), min(first + len(values), stop)
            if low < high:
                samples[low - start : high - start] = values[low - first : high - first]
                found = True
        self._waiting = [(first, values) for first, values in self._waiting if first + len(values) > stop]
        return samples if found else None


def _decode(path: Path, origin_seconds: Fraction) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first sample, int16 samples) blocks in order of time."""
    with open_media(path) as container:
        stream = choose_stream(container, "audio", path)
        run: _Run | None = None
        for frame in container.decode(stream):
            start = None if frame.pts is None else frame.pts * frame.time_base - origin_seconds
            if run is None or not run.continues_with(frame, start):
                if run is not None:
                    yield from run.convert(None)
                run = _Run(frame, Fraction(0) if start is None else start)
            yield from run.convert(frame)
        if run is not None:
            yield from run.convert(None)


class _Run:
    """Sound without a gap or change of format: one resampler, placed by its first time stamp."""

    def __init__(self, frame: av.AudioFrame, start_seconds: Fraction):
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        self._format = _format(frame)
        self._expected_seconds = start_seconds
        self._next_sample = round(start_seconds * SAMPLE_RATE_HZ)

    def continues_with(self, frame: av.AudioFrame, start_seconds: Fraction | None) -> bool:
        in_time = start_seconds is None or abs(start_seconds - self._expected_seconds) <= _RESYNC_SECONDS
        return in_time and _format(frame) == self._format

    def convert(self, frame: av.AudioFrame | None) -> Iterator[tuple[int, np.ndarray]]:
        """Resamples one frame, or with None what is left in the filter."""
        if frame is not None:
            self._expected_seconds += Fraction(frame.samples, frame.sample_rate)
        for part in self._resampler.resample(frame):
            if part is not None:
                values = part.to_ndarray()[0]
                yield self._next_sample, values
                self._next_sample += len(values)


def _format(frame: av.AudioFrame) -> tuple[Any, ...]:
    return frame.format.name, frame.layout.name, frame.sample_rate
