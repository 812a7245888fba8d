"""Stored members to arrays: decord for our own short-GOP video, PyAV for FLAC; both on one thread.

Bytes that do not decode are a ShardError; a machine without memory or threads to spare is a ReadError.
"""

import io
import re

import av
import decord
import numpy as np

from avff.errors import ReadError, ShardError

# As the system, C++ and FFmpeg (ENOMEM, EAGAIN) put it. `thread` alone is in decord's words about bad bytes too.
_NO_MEMORY_OR_THREAD = re.compile(
    r"cannot allocate memory|resource temporarily unavailable|bad_alloc|\(-1[12] vs", re.IGNORECASE
)


def decode_frames(data: bytes, frames: np.ndarray, num_frames: int, where: str) -> np.ndarray:
    """Returns some frames of a stored video.

    Args:
        data: the mp4 member.
        frames: indices, ascending, int64.
        num_frames: frames that the member has to hold.
        where: shard, sample and member, named in every message.

    Returns:
        uint8, (len(frames), height, width, 3), RGB.

    Raises:
        ReadError: memory or threads ran out.
        ShardError: not decodable, or another number of frames.
    """
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        if len(reader) != num_frames:
            raise ShardError(f"{where}: holds {len(reader)} frames, the metadata says {num_frames}; rebuild this shard")
        return reader.get_batch(frames.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        if found := _NO_MEMORY_OR_THREAD.search(str(error)):
            raise ReadError(f"{where}: video cannot be decoded on this machine now: {found[0]}") from error
        # Not in decord's words: they hold clock times, and depend on which of its threads is the first to fail.
        raise ShardError(f"{where}: video cannot be decoded; rebuild this shard") from error


def decode_sound(data: bytes, num_samples: int, sample_rate_hz: int, where: str) -> np.ndarray:
    """Returns the whole stored sound.

    Returns:
        float32 in [-1, 1), (num_samples,).

    Raises:
        ReadError: memory or another resource ran out.
        ShardError: not decodable, not mono 16 bit at the given rate, or another number of samples.
    """
    try:
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
    except (OSError, MemoryError) as error:  # FFmpeg's too: bytes in memory give it no other cause for one
        raise ReadError(
            f"{where}: sound cannot be decoded on this machine now: {str(error) or 'out of memory'}"
        ) from error
    except (av.FFmpegError, IndexError) as error:
        raise ShardError(f"{where}: sound cannot be decoded: {error}; rebuild this shard") from error
    found = sum(map(len, chunks))
    if found != num_samples:
        raise ShardError(f"{where}: holds {found} audio samples, the metadata says {num_samples}; rebuild this shard")
    return np.concatenate(chunks).astype(np.float32) / 32768.0
