"""Pictures of a raw media file, by presentation time stamps.

The time of a file counts from its first shown picture: t = 0 there. Frame rates, start offsets and edit
lists of the container are followed, never assumed; pictures come out upright and with square pixels.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import av.filter
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from avff.errors import MediaError
from avff.media.crops import PixelBox

logger = logging.getLogger(__name__)

_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_HALF_COLOUR_FORMATS = ("yuv420p", "yuvj420p")
_MARGIN = 16
"""Pixels around a box: its own grid begins where the whole picture's would, and the colour filter reaches less far."""


@dataclass(frozen=True)
class MediaInfo:
    """What the first picture and the first sound of a file say.

    Attributes:
        width, height: upright, square pixels.
        fps_source: average rate.
        video_start_seconds: of the first picture on the container's clock.
        audio_start_seconds: of the first sound on the same clock; None without sound.
    """

    width: int
    height: int
    fps_source: float
    video_start_seconds: Fraction
    audio_start_seconds: Fraction | None

    @property
    def audio_offset_seconds(self) -> float:
        """How much later than the picture the sound begins; 0 without sound."""
        if self.audio_start_seconds is None:
            return 0.0
        return float(self.audio_start_seconds - self.video_start_seconds)

    def scaled_size(self, short_side: int) -> tuple[int, int]:
        """Upright width and height of a stored whole frame: the short side as asked, the other even."""
        scale = short_side / min(self.width, self.height)
        width, height = (max(2, 2 * round(side * scale / 2)) for side in (self.width, self.height))
        return width, height


class ShownFrame(NamedTuple):
    """One source picture and the half-open stretch of time in which a player shows it."""

    start_seconds: Fraction
    stop_seconds: Fraction
    picture: av.VideoFrame


def probe(path: Path) -> MediaInfo:
    """Decodes the first picture and the first sound of a file.

    Raises:
        MediaError: the file cannot be opened or decoded (UNDECODABLE), or holds no video stream (NO_VIDEO).
    """
    with open_media(path) as container:
        stream = choose_stream(container, "video", path, log=True)
        if stream is None:
            raise MediaError(f"{path}: holds no video stream", reason="NO_VIDEO")
        picture = next(container.decode(stream), None)
        if picture is None:
            raise MediaError(f"{path}: the video stream holds no picture", reason="NO_VIDEO")
        width, height = _upright_size(picture, stream.sample_aspect_ratio)
        fps_source = float(stream.average_rate or stream.guessed_rate or 0)
        video_start = _start_seconds(picture)
    with open_media(path) as container:
        sound_stream = choose_stream(container, "audio", path, log=True)
        sound = None if sound_stream is None else next(container.decode(sound_stream), None)
        audio_start = None if sound is None else _start_seconds(sound)
    return MediaInfo(width, height, fps_source, video_start, audio_start)


def read_frames(path: Path) -> Iterator[ShownFrame]:
    """Yields every picture of the best video stream with the time it is shown; the first starts at 0.

    Raises:
        MediaError: the decoder failed anywhere in the stream; the message holds its reason and the time.
    """
    with open_media(path) as container:
        stream = choose_stream(container, "video", path)
        if stream is None:
            raise MediaError(f"{path}: holds no video stream", reason="NO_VIDEO")
        usual_step = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
        origin: Fraction | None = None
        start = Fraction(0)
        shown: av.VideoFrame | None = None
        for picture in container.decode(stream):
            if origin is None:
                origin = _start_seconds(picture)
            elif shown is not None:
                known = picture.pts is not None
                stop = _start_seconds(picture) - origin if known else start + usual_step
                if stop <= start:  # two pictures at one time: the later one is what stays on the screen
                    shown = picture
                    continue
                yield ShownFrame(start, stop, shown)
                start = stop
            shown = picture
        if shown is not None:
            lasts = shown.duration * shown.time_base if shown.duration and shown.time_base else usual_step
            yield ShownFrame(start, start + lasts, shown)


def upright_rgb(picture: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Returns the picture as uint8 (H, W, 3) RGB, upright and scaled.

    Args:
        size: upright width and height in pixels to scale to.
    """
    turns = _quarter_turns(picture)
    width, height = (size[1], size[0]) if turns % 2 else size
    pixels = _to_rgb(picture, width, height)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


class UprightPicture:
    """What `upright_rgb` returns, to the bit, of which only the boxes that are asked for are converted.

    Half-size colour is scaled up by a filter, so that a box is converted with a margin around it. Where a picture has to
    be scaled, or its colours do not lie as nearly all video's do, the whole of it is converted, once.
    """

    def __init__(self, picture: av.VideoFrame, size: tuple[int, int]):
        self._picture = picture
        self._size = size
        self._turns = _quarter_turns(picture)
        stored_size = (size[1], size[0]) if self._turns % 2 else size
        self._in_parts = (
            stored_size == (picture.width, picture.height)
            and picture.format.name in _HALF_COLOUR_FORMATS
            and picture.width % 2 == picture.height % 2 == 0
            and not picture.interlaced_frame
        )

    def read(self, box: PixelBox) -> np.ndarray:
        """Returns the pixels of a box of the upright picture, uint8 (H, W, 3) RGB."""
        if not self._in_parts:
            return self._whole[box.top : box.bottom, box.left : box.right]
        inner = self._stored_box(box)
        outer = PixelBox(
            max(0, (inner.left - _MARGIN) // _MARGIN * _MARGIN),
            max(0, (inner.top - _MARGIN) // _MARGIN * _MARGIN),
            min(self._picture.width, -(-(inner.right + _MARGIN) // _MARGIN) * _MARGIN),
            min(self._picture.height, -(-(inner.bottom + _MARGIN) // _MARGIN) * _MARGIN),
        )
        pixels_HWC = _to_rgb(_cut(self._picture, outer), outer.right - outer.left, outer.bottom - outer.top)
        rows = slice(inner.top - outer.top, inner.bottom - outer.top)
        return np.rot90(pixels_HWC[rows, inner.left - outer.left : inner.right - outer.left], self._turns)

    @cached_property
    def _whole(self) -> np.ndarray:
        return upright_rgb(self._picture, self._size)

    def _stored_box(self, box: PixelBox) -> PixelBox:
        """Returns where a box of the upright picture lies in the stored one."""
        width, height = self._size
        for _ in range(self._turns):
            box = PixelBox(height - box.bottom, box.left, height - box.top, box.right)
            width, height = height, width
        return box


def _cut(picture: av.VideoFrame, box: PixelBox) -> av.VideoFrame:
    """Returns a part of a picture without copying its pixels."""
    graph = av.filter.Graph()
    place = f"{box.right - box.left}:{box.bottom - box.top}:{box.left}:{box.top}:exact=1"
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base or Fraction(1)
    )
    graph.link_nodes(source, graph.add("crop", place), graph.add("buffersink")).configure()
    graph.push(picture)
    part = graph.pull()
    assert isinstance(part, av.VideoFrame)
    return part


def _to_rgb(picture: av.VideoFrame, width: int, height: int) -> np.ndarray:
    scaler = VideoReformatter()  # a picture's own serves one thread at a time
    return scaler.reformat(picture, width, height, "rgb24", interpolation=_SCALING, threads=1).to_ndarray()


def stored_rgb(picture: av.VideoFrame) -> np.ndarray:
    """Returns the picture as uint8 (H, W, 3) RGB, upright, one value per stored pixel, whatever shape these have.

    Colours are converted without FFmpeg's more accurate options, which gives to the bit what decord gives.
    """
    pixels = picture.reformat(format="rgb24", interpolation=Interpolation.BILINEAR, threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(picture)))


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[Any]:
    """Opens a container for reading and turns every failure of FFmpeg inside the block into a MediaError."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            yield container
    except av.error.FFmpegError as error:
        place = "" if error.filename in (None, str(path)) else f" (in {error.filename})"
        raise MediaError(f"{path}: cannot be decoded: {error.strerror}{place}") from error


def choose_stream(container: Any, kind: Literal["video", "audio"], path: Path, *, log: bool = False) -> Any:
    """Returns FFmpeg's best stream of a kind, or None; the cover picture of a sound file is not video.

    Args:
        log: say so if there were several to choose from.
    """
    every = container.streams.video if kind == "video" else container.streams.audio
    streams = [stream for stream in every if not stream.disposition & av.stream.Disposition.attached_pic]
    best = container.streams.best(kind)
    if best is None or best not in streams:
        return None
    if log and len(streams) > 1:
        logger.info("%s: %d %s streams, taking FFmpeg's best, number %d", path, len(streams), kind, best.index)
    best.codec_context.thread_count = 1  # parallelism is over files; results do not depend on the machine
    return best


def _start_seconds(frame: Any) -> Fraction:
    return Fraction(0) if frame.pts is None else Fraction(frame.pts) * frame.time_base


def _quarter_turns(picture: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that make the picture upright."""
    return round(picture.rotation / 90) % 4


def _upright_size(picture: av.VideoFrame, pixel_ratio: Fraction | None) -> tuple[int, int]:
    """Width and height as a player shows the picture: square pixels, rotation applied."""
    width, height = round(picture.width * (pixel_ratio or 1)), picture.height
    return (height, width) if _quarter_turns(picture) % 2 else (width, height)
