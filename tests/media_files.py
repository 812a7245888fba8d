"""Small media files that tests write themselves: any time stamps, offsets, rotations and streams."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np


class Pictures(NamedTuple):
    """One video stream: uint8 RGB pictures and the second at which each begins; the last one lasts as the first."""

    seconds: list[float]
    frames_THWC: np.ndarray


class Sound(NamedTuple):
    """One audio stream: samples in [-1, 1], (channels, N), that begin at a time of the container's clock."""

    start_seconds: float
    rate_hz: int
    samples_CN: np.ndarray


def solid(color: tuple[int, int, int], count: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """Returns `count` pictures of one colour; size is width and height."""
    return np.full((count, size[1], size[0], 3), color, np.uint8)


def steady(frames_THWC: np.ndarray, fps: float, start_seconds: float = 0.0) -> Pictures:
    return Pictures([start_seconds + i / fps for i in range(len(frames_THWC))], frames_THWC)


def noise(seconds: float, rate_hz: int = 16000, channels: int = 1, start_seconds: float = 0.0) -> Sound:
    samples = np.random.default_rng(7).uniform(-0.3, 0.3, (channels, round(seconds * rate_hz)))
    return Sound(start_seconds, rate_hz, samples)


def write_media(
    path: Path,
    videos: list[Pictures],
    sounds: list[Sound] | None = None,
    *,
    rotation: int = 0,
    default_video: int | None = None,
) -> Path:
    """Writes an mp4 or mov; sound is PCM in mov (sample-exact) and AAC in mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video_streams = [_add_video(container, video, rotation) for video in videos]
        if default_video is not None:
            video_streams[default_video].disposition = av.stream.Disposition.default
        sound_streams = [_add_sound(container, sound, path.suffix) for sound in sounds or []]
        packets = []
        for stream, video in zip(video_streams, videos, strict=True):
            packets += _encode_video(stream, video)
        for stream, sound in zip(sound_streams, sounds or [], strict=True):
            packets += _encode_sound(stream, sound)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


_CLOCK = Fraction(1, 30000)


def _add_video(container, video: Pictures, rotation: int):
    stream = container.add_stream("libx264", rate=30)
    stream.height, stream.width = video.frames_THWC.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = _CLOCK
    stream.time_base = _CLOCK
    stream.options = {"crf": "5", "bf": "2", "threads": "1", "preset": "veryfast"}
    if rotation:
        stream.set_display_rotation(rotation)
    return stream


def _encode_video(stream, video: Pictures) -> list:
    packets = []
    for seconds, picture in zip(video.seconds, video.frames_THWC, strict=True):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(seconds / _CLOCK), _CLOCK
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _add_sound(container, sound: Sound, suffix: str):
    stream = container.add_stream("pcm_s16le" if suffix == ".mov" else "aac", rate=sound.rate_hz)
    stream.codec_context.layout = {1: "mono", 2: "stereo"}[len(sound.samples_CN)]
    return stream


def _encode_sound(stream, sound: Sound) -> list:
    packets = []
    layout = stream.codec_context.layout.name
    for start in range(0, sound.samples_CN.shape[1], 1024):
        block = np.round(sound.samples_CN[:, start : start + 1024] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(block.T.reshape(1, -1).copy(), format="s16", layout=layout)
        frame.sample_rate, frame.time_base = sound.rate_hz, Fraction(1, sound.rate_hz)
        frame.pts = round(sound.start_seconds * sound.rate_hz) + start
        packets += stream.encode(frame)
    return packets + stream.encode(None)
