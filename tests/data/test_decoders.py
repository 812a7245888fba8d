"""decord, torchcodec and PyAV give the same frames and the same errors for stored video, byte for byte."""

import dataclasses
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from avff.build_config import PROFILES
from avff.config import ClipConfig
from avff.data.decode import decode_frames
from avff.data.shards import read_sample
from avff.data.views import AVView
from avff.errors import ShardError
from avff.media.encode import VideoEncoder


@pytest.fixture(params=["torchcodec", "pyav"], autouse=True)
def other(request):
    """What decord is compared with."""
    if request.param == "torchcodec":
        request.getfixturevalue("torchcodec")
    return request.param


def picture(num_frames, height, width):
    rng = np.random.default_rng(0)
    y, x, t = np.mgrid[:height, :width, :num_frames].astype(np.float32)
    wave = 127 + 90 * np.sin(x / 7 + t / 3) * np.cos(y / 5 - t / 4)
    noisy_HWTC = wave[..., None] + rng.normal(0, 12, (height, width, num_frames, 3))
    return np.clip(noisy_HWTC, 0, 255).astype(np.uint8).transpose(2, 0, 1, 3)


def stored(profile, video_THWC, rate=None):
    encoder = VideoEncoder(profile, rate or Fraction(profile.frames_per_second), *video_THWC.shape[2:0:-1])
    for frame in video_THWC:
        encoder.add(frame)
    return encoder.finish()


def both(content, frames, num_frames, other):
    return [decode_frames(content, frames, num_frames, "x", decoder) for decoder in ("decord", other)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (66, 130)])
def test_the_same_frames_in_windows_at_every_offset(profile, height, width, other):
    video_THWC = picture(21, height, width)
    content = stored(PROFILES[profile], video_THWC)
    for stride in (1, 5):
        for start in range(21):
            frames = np.arange(start, 21, stride)[:16]
            expected, found = both(content, frames, 21, other)
            assert expected.shape == (len(frames), height, width, 3) and expected.dtype == found.dtype == np.uint8
            assert (expected == found).all(), (stride, start)
    everything = both(content, np.arange(21), 21, other)[1]
    assert np.abs(everything.astype(int) - video_THWC).mean() < 12  # the frames of these numbers, no neighbours


@pytest.mark.parametrize(
    "rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(1), Fraction(25, 3), Fraction(60)]
)
@pytest.mark.parametrize("gop_frames", [1, 8, 30])
def test_the_same_frames_at_any_rate(rate, gop_frames, other):
    profile = dataclasses.replace(PROFILES["pretrain"], gop_frames=gop_frames)
    content = stored(profile, picture(40, 64, 64), rate)
    numbers = both(content, np.arange(40), 40, other)
    assert (numbers[0] == numbers[1]).all()
    assert all((one != other).any() for one, other in pairwise(numbers[1]))
    for number in (0, 7, 8, 23, 39):
        expected, found = both(content, np.array([number]), 40, other)
        assert (expected == found).all() and (found[0] == numbers[0][number]).all()


@pytest.mark.slow
def test_the_same_clips_from_shards(real_face_shards, other):
    views, num_clips = [AVView(ClipConfig(), "decord"), AVView(ClipConfig(), other)], 0
    for row in real_face_shards.rows:
        expected, found = (view.evaluation_clips(read_sample(real_face_shards, row)) for view in views)
        assert len(expected) == len(found)
        num_clips += len(expected)
        for a, b in zip(expected, found, strict=True):
            assert (a.video_THWC == b.video_THWC).all() and (a.waveform_N == b.waveform_N).all()
    assert num_clips > 0


def outcome(content, decoder, num_frames=16):
    try:
        return decode_frames(content, np.arange(num_frames), num_frames, "a.tar: face0.mp4", decoder).tobytes()
    except ShardError as error:
        return type(error), str(error)


CONTENT = stored(PROFILES["pretrain"], picture(16, 64, 64))
REFUSED = ShardError, "a.tar: face0.mp4: video cannot be decoded; rebuild this shard"


@pytest.mark.parametrize(
    "content",
    [b"", b"no video", CONTENT[:100], CONTENT[: len(CONTENT) // 2], CONTENT[:-400], bytes(len(CONTENT)), CONTENT[200:]],
    ids=["nothing", "text", "head", "half", "cut", "zeros", "tail"],
)
def test_the_same_words_about_what_is_no_video(content, other):
    assert outcome(content, "decord") == outcome(content, other) == REFUSED


def test_the_same_words_about_another_number_of_frames(other):
    expected = ShardError, "a.tar: face0.mp4: holds 16 frames, the metadata says 15; rebuild this shard"
    assert outcome(CONTENT, "decord", 15) == outcome(CONTENT, other, 15) == expected


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25])
def test_overwritten_frames_are_concealed_or_refused_alike(share, other):
    rng = np.random.default_rng(0)
    start = CONTENT.index(b"mdat") + 4
    length = int(share * (len(CONTENT) - start))
    for _ in range(20):
        place = rng.integers(start, len(CONTENT) - length)
        damaged = CONTENT[:place] + rng.bytes(length) + CONTENT[place + length :]
        expected, found = (outcome(damaged, decoder) for decoder in ("decord", other))
        assert expected == found and (isinstance(expected, bytes) or expected == REFUSED)


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from avff.data.decode import decode_frames
from avff.data.decoders import require_decoder
from avff.errors import ShardError

content, decoder = sys.stdin.buffer.read(), sys.argv[1]
require_decoder(decoder)
decode_frames(content, np.arange(1), 16, "x", decoder)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 1_000_000, -1))
try:
    decode_frames(content, np.arange(16), 16, "a.tar: face0.mp4", decoder)
except ShardError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_memory_that_runs_out_is_not_blamed_on_the_video(other):
    content = stored(PROFILES["pretrain"], picture(16, 512, 768))  # 18 MB of frames
    command = [sys.executable, "-c", LITTLE_MEMORY, other]
    done = subprocess.run(command, check=True, input=content, stdout=subprocess.PIPE, timeout=600)
    assert done.stdout.decode().startswith("ReadError a.tar: face0.mp4: video cannot be decoded on this machine now: ")
