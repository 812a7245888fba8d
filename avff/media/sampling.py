"""A constant frame rate out of any other.

Stored frame i stands for the time [i/f, (i+1)/f) and is the picture that the source shows in the *middle* of it:

    source     |--A--|----B----|--C--|-----D-----|
    stored     |   0   |   1   |   2   |   3   |
    middle         A       B       C       D

So a picture's onset moves by at most half a stored frame, either way, and equal rates pass unchanged even where
time stamps jitter by nearly half a frame.
"""

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av

from avff.media.reader import ShownFrame

_HALF = Fraction(1, 2)
_END_TOLERANCE = Fraction(1, 10)
"""Share of the last stored frame that the source need not cover: containers round the last duration."""


class StoredFrame(NamedTuple):
    """One frame of the constant-rate video.

    Attributes:
        number: counted since the start of the source.
        source_seconds: when the picture it shows begins in the source.
        picture: still as decoded.
    """

    number: int
    source_seconds: Fraction
    picture: av.VideoFrame


def exact_rate(frames_per_second: float) -> Fraction:
    """Returns a configured rate as the exact fraction that all time arithmetic and the encoder use."""
    return Fraction(frames_per_second).limit_denominator(1001)


def sample_frames(frames: Iterable[ShownFrame], rate: Fraction) -> Iterator[StoredFrame]:
    """Yields stored frames 0, 1, 2... as long as the source lasts; at least one if it holds any picture."""
    held: StoredFrame | None = None  # the last frame is stored only if the source covers it to its end
    shown: ShownFrame | None = None
    index = 0
    for shown in frames:
        while (index + _HALF) / rate < shown.stop_seconds:
            if held is not None:
                yield held
            held = StoredFrame(index, shown.start_seconds, shown.picture)
            index += 1
    if shown is None:
        return
    if held is None:
        held = StoredFrame(0, shown.start_seconds, shown.picture)
    if held.number == 0 or (held.number + 1 - _END_TOLERANCE) / rate <= shown.stop_seconds:
        yield held


def split_segments(
    frames: Iterable[StoredFrame], frames_per_segment: int
) -> Iterator[tuple[int, Iterator[StoredFrame]]]:
    """Groups stored frames into consecutive segments (number, frames); each group is read before the next."""
    return itertools.groupby(frames, key=lambda frame: frame.number // frames_per_segment)
