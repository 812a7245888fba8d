"""The libraries that decode stored video. They give the same frames; which is the fastest depends on the machine.

decord and PyAV are always installed; torchcodec (`pip install "avff[torchcodec]"`) needs FFmpeg's shared libraries, too.
"""

import importlib
import io
from collections.abc import Callable, Iterable
from typing import NamedTuple, get_args

import av
import numpy as np

from avff.config import DecoderName
from avff.data.mp4 import decode_pictures, read_picture_table
from avff.errors import ConfigError

DEFAULT_DECODER: DecoderName = "pyav"
"""Of whatever reads stored samples outside of training: the frames are the same, and it is there everywhere."""


class Video(NamedTuple):
    """An opened video.

    Attributes:
        read: the frames with some ascending indices, none twice, uint8 (height, width, 3), RGB, each to be copied before
            the next.
    """

    num_frames: int
    read: Callable[[list[int]], Iterable[np.ndarray]]


def open_video(data: bytes, decoder: DecoderName) -> Video:
    """Opens mp4 in memory; it and `Video.read` raise `errors_of(decoder)` or MemoryError."""
    return _OPEN[decoder](data)


def errors_of(decoder: DecoderName) -> tuple[type[Exception], ...]:
    """Returns what a decoder raises, for bytes that are no video and for a lack of memory or threads alike."""
    if decoder == "decord":
        import decord

        return decord.DECORDError, RuntimeError
    if decoder == "pyav":
        return *errors_of("decord"), av.FFmpegError
    return RuntimeError, ValueError, IndexError


def installed_decoders() -> list[DecoderName]:
    """Returns those that can be imported here."""
    return [name for name in get_args(DecoderName) if _problem(name) is None]


def require_decoder(decoder: DecoderName) -> None:
    """Raises ConfigError where a decoder cannot be imported."""
    if problem := _problem(decoder):
        raise ConfigError(
            f"data.decoder is {decoder}, which cannot be used here: {problem}; install it (pip install "
            f'"avff[torchcodec]", and FFmpeg with its shared libraries: apt install ffmpeg), or start a new run with '
            f"data.decoder={DEFAULT_DECODER}"
        )


def _problem(decoder: DecoderName) -> str | None:
    """Returns the first line of why a library cannot be imported; torchcodec has RuntimeError where FFmpeg is missing."""
    try:
        importlib.import_module(_MODULES[decoder])
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().split("\n", 1)[0]
    return None


def _open_decord(data: bytes) -> Video:
    import decord

    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    return Video(len(reader), lambda frames: reader.get_batch(frames).asnumpy())


def _open_torchcodec(data: bytes) -> Video:
    from torchcodec.decoders import VideoDecoder

    # `exact` looks at every packet first: 2 % of the time, and the number of frames is counted, not stated.
    reader = VideoDecoder(data, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")

    def read(frames: list[int]) -> np.ndarray:
        try:
            return reader.get_frames_at(frames).data.numpy()
        except RuntimeError as error:
            if "aten::empty" in str(error):  # why it failed is said on stderr alone
                raise MemoryError from error
            raise

    return Video(len(reader), read)


def _open_pyav(data: bytes) -> Video:
    """FFmpeg's decoder without its demuxer; what is less plain than our own files is left to decord."""
    table = read_picture_table(data)
    if table is None:
        return _open_decord(data)
    return Video(len(table.sizes_N), lambda frames: decode_pictures(data, table, frames))


_OPEN = {"decord": _open_decord, "torchcodec": _open_torchcodec, "pyav": _open_pyav}
_MODULES = {"decord": "decord", "torchcodec": "torchcodec.decoders", "pyav": "av"}
