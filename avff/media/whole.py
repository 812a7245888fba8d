"""A raw media file as a whole: pictures spread over it, and its sound untouched.

For detectors that look at a file so; ours cuts it into segments of even time (avff.media.clips).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from avff.errors import MediaError
from avff.media.reader import choose_stream, open_media, read_frames, stored_rgb


class SpreadPictures(NamedTuple):
    """
    Attributes:
        pictures: what was asked for, in order of time.
        num_frames: of the file.
        duration_seconds: from its first picture to the end of its last.
    """

    pictures: list[np.ndarray]
    num_frames: int
    duration_seconds: float


class NativeSound(NamedTuple):
    """Sound as the file holds it: float32 in [-1, 1], every channel, at its own rate."""

    samples_CN: np.ndarray
    rate_hz: int


def read_spread_pictures(
    path: Path, choose: Callable[[int], np.ndarray], prepare: Callable[[np.ndarray], np.ndarray]
) -> SpreadPictures:
    """Returns some pictures of a file, chosen by their number.

    Args:
        choose: from the number of pictures to the indices that are wanted, ascending; one may come repeatedly.
        prepare: from an upright uint8 (H, W, 3) picture at its stored size to what is kept of it.

    Raises:
        MediaError: the file cannot be decoded to its end, or holds no picture.
    """
    expected = _count_packets(path)
    spread = _take(path, choose(max(1, expected)), prepare)
    if spread.num_frames != expected:  # packets are not pictures where some are hidden or shown at one time
        spread = _take(path, choose(spread.num_frames), prepare)
    return spread


def _take(path: Path, indices: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray]) -> SpreadPictures:
    wanted, kept = set(indices.tolist()), {}
    num_frames, stop_seconds = 0, 0.0
    for number, frame in enumerate(read_frames(path)):
        if number in wanted:
            kept[number] = prepare(stored_rgb(frame.picture))
        num_frames, stop_seconds = number + 1, float(frame.stop_seconds)
    if not num_frames:
        raise MediaError(f"{path}: the video stream holds no picture", reason="NO_VIDEO")
    return SpreadPictures([kept[index] for index in indices.tolist() if index in kept], num_frames, stop_seconds)


def _count_packets(path: Path) -> int:
    with open_media(path) as container:
        stream = choose_stream(container, "video", path, log=True)
        if stream is None:
            raise MediaError(f"{path}: holds no video stream", reason="NO_VIDEO")
        return sum(1 for packet in container.demux(stream) if packet.size)


def read_native_sound(path: Path) -> NativeSound | None:
    """Returns the whole sound of a file without resampling, or None if it has none.

    Raises:
        MediaError: it cannot be decoded to its end, or changes its rate or channels on the way.
    """
    with open_media(path) as container:
        stream = choose_stream(container, "audio", path, log=True)
        if stream is None:
            return None
        to_float = av.AudioResampler(format="fltp")
        blocks: list[np.ndarray] = []
        form: tuple[int, str] | None = None
        for frame in container.decode(stream):
            found = (frame.sample_rate, frame.layout.name)
            if form not in (None, found):
                raise MediaError(f"{path}: its sound changes from {form} to {found} midway")
            form = found
            blocks += [part.to_ndarray() for part in to_float.resample(frame)]
        if form is None:
            return None
        blocks += [part.to_ndarray() for part in to_float.resample(None)]
        return NativeSound(np.concatenate(blocks, axis=1), form[0])
