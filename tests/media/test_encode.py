"""What a sample stores reads back as it was."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from avff.build_config import PROFILES
from avff.media.encode import VideoEncoder, encode_flac


def moving_picture(count: int, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    frames = [np.stack([x, y, 0.5 + 0.4 * np.sin(8 * x + t / 3)], axis=-1) * 255 for t in range(count)]
    return np.stack(frames).astype(np.uint8)


def encode(name: str, frames_THWC: np.ndarray) -> bytes:
    profile = PROFILES[name]
    encoder = VideoEncoder(profile, Fraction(profile.frames_per_second), *frames_THWC.shape[2:0:-1])
    for frame in frames_THWC:
        encoder.add(frame)
    return encoder.finish()


def test_flac_is_bit_exact():
    samples = np.random.default_rng(0).integers(-32768, 32767, 12345).astype(np.int16)
    with av.open(io.BytesIO(encode_flac(samples))) as container:
        assert container.streams.audio[0].rate == 16000
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.array_equal(decoded, samples)


@pytest.mark.parametrize(("name", "least_psnr"), [("pretrain", 36), ("evidence", 40)])
def test_video_starts_at_zero_with_constant_rate_and_short_closed_groups(name, least_psnr):
    frames_THWC = moving_picture(20, 64)
    with av.open(io.BytesIO(encode(name, frames_THWC))) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == PROFILES[name].frames_per_second
        decoded = list(container.decode(stream))
        assert stream.codec_context.max_bit_rate is None and not stream.codec_context.has_b_frames
    assert [float(f.pts * f.time_base) for f in decoded] == pytest.approx(
        [i / PROFILES[name].frames_per_second for i in range(20)]
    )
    assert [n for n, f in enumerate(decoded) if f.key_frame] == [0, 8, 16]
    assert decoded[0].format.name == PROFILES[name].pixel_format
    error = np.stack([f.to_ndarray(format="rgb24") for f in decoded]).astype(float) - frames_THWC
    assert 10 * np.log10(255**2 / (error**2).mean()) > least_psnr


def test_bytes_depend_on_the_frames_alone():
    assert encode("pretrain", moving_picture(9, 64)) == encode("pretrain", moving_picture(9, 64))
