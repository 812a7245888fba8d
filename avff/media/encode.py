"""Encoding of what a sample stores: h264 in mp4 and FLAC, the same signature for every clip."""

import io
from fractions import Fraction

import av
import numpy as np

from avff.build_config import VideoProfile
from avff.media.audio import SAMPLE_RATE_HZ
from avff.schema import EncoderInfo

FLAC_FRAME_SAMPLES = 4096
"""0.256 s; FFmpeg's own choice, 1152, has four times as many frames to take apart."""


def encoder_info(name: str, profile: VideoProfile) -> EncoderInfo:
    """Returns the signature that a sample's metadata record."""
    parameters: dict[str, str | int | float] = {
        "pixel_format": profile.pixel_format,
        "crf": profile.crf,
        "gop_frames": profile.gop_frames,
        "preset": profile.preset,
        "tune": profile.tune,
        "fps": profile.frames_per_second,
    }
    return EncoderInfo(profile=name, codec="h264", parameters=parameters)


class VideoEncoder:
    """Turns uint8 RGB frames of one size into mp4 bytes at a constant rate."""

    def __init__(self, profile: VideoProfile, rate: Fraction, width: int, height: int):
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4", options={"fflags": "+bitexact"})
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._frame_seconds = 1 / rate
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = profile.pixel_format
        self._stream.codec_context.thread_count = 1  # x264's output depends on its number of threads
        # No B-frames, so the first time stamp is 0; fixed closed GOPs, so that real and fake look alike.
        gop = profile.gop_frames
        self._stream.options = {
            "crf": str(profile.crf),
            "preset": profile.preset,
            "tune": profile.tune,
            "bf": "0",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0",
        }
        self._count = 0

    def add(self, frame_HWC: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        frame.pts = self._count
        frame.time_base = self._frame_seconds
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()


def encode_flac(samples: np.ndarray) -> bytes:
    """Returns int16 mono samples at 16 kHz as FLAC, bit-exact."""
    buffer = io.BytesIO()
    options = {"fflags": "+bitexact", "metadata_header_padding": "0"}  # else 8 KiB of room for tags
    with av.open(buffer, "w", format="flac", options=options) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ)
        stream.codec_context.layout = "mono"
        stream.codec_context.format = "s16"
        stream.options = {"frame_size": str(FLAC_FRAME_SAMPLES)}
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
