"""Stored members to arrays: short-GOP video by one of several libraries, FLAC by FFmpeg's decoder; all on one thread.

Bytes that do not decode are a ShardError; a machine without memory or threads to spare is a ReadError.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import av
import numpy as np

from avff.config import DecoderName
from avff.data import flac
from avff.data.decoders import DEFAULT_DECODER, errors_of, open_video
from avff.errors import ReadError, ShardError

# As the system, C++ and FFmpeg (ENOMEM, EAGAIN) put it. `thread` alone is in decord's words about bad bytes too.
_NO_MEMORY_OR_THREAD = re.compile(
    r"cannot allocate memory|resource temporarily unavailable|bad_alloc|\(-1[12] vs", re.IGNORECASE
)


def decode_frames(
    data: bytes,
    frames: np.ndarray,
    num_frames: int,
    where: str,
    decoder: DecoderName = DEFAULT_DECODER,
    crop: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Returns some frames of a stored video.

    Args:
        data: the mp4 member.
        frames: indices, ascending, none twice, int64.
        num_frames: frames that the member has to hold.
        where: shard, sample and member, named in every message.
        decoder: no effect on the frames.
        crop: takes the part of a frame (height, width, 3) that is returned; all of it by default.

    Returns:
        uint8, (len(frames), height, width, 3), RGB.

    Raises:
        ReadError: memory or threads ran out.
        ShardError: not decodable, or another number of frames.
    """
    with _video_errors(where, decoder):
        video = open_video(data, decoder)
    if video.num_frames != num_frames:
        raise ShardError(
            f"{where}: holds {video.num_frames} frames, the metadata says {num_frames}; rebuild this shard"
        )
    with _video_errors(where, decoder):
        found_THWC = np.empty(0)
        for place, frame_HWC in enumerate(video.read(frames.tolist())):
            part_HWC = crop(frame_HWC) if crop else frame_HWC
            if place == 0:
                found_THWC = np.empty((len(frames), *part_HWC.shape), np.uint8)
            found_THWC[place] = part_HWC
        return found_THWC


@contextmanager
def _video_errors(where: str, decoder: DecoderName) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise ReadError(f"{where}: video cannot be decoded on this machine now: out of memory") from error
    except errors_of(decoder) as error:
        if found := _NO_MEMORY_OR_THREAD.search(str(error)):
            raise ReadError(f"{where}: video cannot be decoded on this machine now: {found[0]}") from error
        # Not in the library's words: decord's hold clock times, and depend on which of its threads is the first to fail.
        raise ShardError(f"{where}: video cannot be decoded; rebuild this shard") from error


def decode_sound(
    data: bytes, num_samples: int, sample_rate_hz: int, where: str, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """Returns the stored sound, or the samples [start, stop) of it, for which little else is decoded.

    Returns:
        float32 in [-1, 1), (stop - start,).

    Raises:
        ReadError: memory or another resource ran out.
        ShardError: not decodable, not mono 16 bit at the given rate, or another number of samples.
    """
    stop = num_samples if stop is None else stop
    layout = flac.read_layout(data)
    try:
        samples_N = None
        if layout and layout[1:5] == (1, 16, sample_rate_hz, num_samples):
            samples_N = flac.decode_window(data, layout, start, stop)
        if samples_N is None:  # FLAC of another making, or not what it should be, which is then said
            samples_N = _decode_whole(data, num_samples, sample_rate_hz, where)[start:stop]
    except (OSError, MemoryError) as error:  # FFmpeg's too: bytes in memory give it no other cause for one
        raise ReadError(
            f"{where}: sound cannot be decoded on this machine now: {str(error) or 'out of memory'}"
        ) from error
    except (av.FFmpegError, IndexError) as error:
        raise ShardError(f"{where}: sound cannot be decoded: {error}; rebuild this shard") from error
    return np.multiply(samples_N, 1 / 32768, dtype=np.float32)


def _decode_whole(data: bytes, num_samples: int, sample_rate_hz: int, where: str) -> np.ndarray:
    """Returns all samples, int16, whatever container and blocks they are in."""
    with av.open(io.BytesIO(data), mode="r", metadata_errors="replace") as container:
        stream = container.streams.audio[0]
        form = stream.format.name if stream.format else "of no form"
        if (stream.rate, form, stream.channels) != (sample_rate_hz, "s16", 1):
            raise ShardError(
                f"{where}: sound is {stream.channels} x {form} at {stream.rate} Hz, expected mono s16 at "
                f"{sample_rate_hz} Hz; rebuild this shard"
            )
        stream.codec_context.thread_count = 1
        chunks = [frame.to_ndarray().reshape(-1) for frame in container.decode(stream)]
    found = sum(map(len, chunks))
    if found != num_samples:
        raise ShardError(f"{where}: holds {found} audio samples, the metadata says {num_samples}; rebuild this shard")
    return np.concatenate(chunks)
