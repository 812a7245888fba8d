"""Windows of FLAC are cut from the few frames that hold them: the same samples as from the whole sound, or a refusal."""

import io

import av
import numpy as np
import pytest

from avff.data import decode, flac
from avff.data.decode import decode_sound
from avff.errors import ShardError
from avff.media.encode import encode_flac

RATE_HZ = 16000


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).integers(-3000, 3000, num_samples).astype(np.int16)


def encoded(sound_N, frame_size, rate_hz=RATE_HZ):
    """FLAC with frames of another size than stored ones."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate_hz, layout="mono", format="s16")
        stream.options = {"frame_size": str(frame_size)}
        frame = av.AudioFrame.from_ndarray(sound_N[None], format="s16", layout="mono")
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture
def only_windows(monkeypatch):
    """The way that decodes everything is closed."""
    monkeypatch.delattr(decode, "_decode_whole")


# 256 and 4096 have a code of their own, 100 and 1000 stand after the frame number, which has 2 bytes from 128 on.
@pytest.mark.parametrize(
    ("frame_size", "num_samples", "window"),
    [(16, 3000, 50), (16, 3008, 16), (100, 1730, 300), (256, 1300, 400), (1000, 4500, 1200), (4096, 9000, 5000)],
)
@pytest.mark.usefixtures("only_windows")
def test_a_window_at_every_offset(frame_size, num_samples, window):
    sound_N = noise(num_samples)
    content = encoded(sound_N, frame_size)
    for start in range(0, num_samples - window + 1, 1 if num_samples < 2000 else 7):
        found_N = decode_sound(content, num_samples, RATE_HZ, "flac", start, start + window)
        assert found_N.dtype == np.float32 and (found_N * 32768 == sound_N[start : start + window]).all(), start
    assert (decode_sound(content, num_samples, RATE_HZ, "flac") * 32768 == sound_N).all()
    last = num_samples - window
    assert (decode_sound(content, num_samples, RATE_HZ, "flac", last, num_samples) * 32768 == sound_N[last:]).all()


@pytest.mark.usefixtures("only_windows")
def test_stored_sound_is_read_in_windows_and_has_no_padding():
    sound_N = noise(10 * RATE_HZ)
    content = encode_flac(sound_N)
    layout = flac.read_layout(content)
    assert (layout.sample_rate_hz, layout.num_samples, layout.block_samples) == (RATE_HZ, len(sound_N), 4096)
    assert layout.first_frame < 100
    for start in (0, 1, 4095, 4096, 4097, 70_000, len(sound_N) - 51_200):
        found_N = decode_sound(content, len(sound_N), RATE_HZ, "flac", start, start + 51_200)
        assert (found_N * 32768 == sound_N[start : start + 51_200]).all()


@pytest.mark.parametrize("num_samples", [1, 90, 99, 100])
def test_sound_of_one_frame(num_samples):
    sound_N = noise(num_samples)
    content = encoded(sound_N, 100)
    assert (decode_sound(content, num_samples, RATE_HZ, "flac", 0, num_samples) * 32768 == sound_N).all()


def test_little_is_decoded_for_a_window(monkeypatch):
    content, sizes = encoded(noise(160_000), 1000), []
    packet = av.Packet
    monkeypatch.setattr(av, "Packet", lambda data: sizes.append(len(data)) or packet(data))
    decode_sound(content, 160_000, RATE_HZ, "flac", 80_500, 90_500)
    assert sizes == [pytest.approx(len(content) * 11 / 160, rel=0.05)]


def test_bytes_that_look_like_the_next_frame_are_none():
    """The header searched for lies in the samples of a frame before it, which are stored as they are."""
    layout = flac.read_layout(encoded(noise(1000), 100))
    header = layout.header(7)
    header += b"\0" * (len(header) % 2)
    sound_N = np.random.default_rng(0).integers(-32768, 32767, 1000).astype(np.int16)
    sound_N[650 : 650 + len(header) // 2] = np.frombuffer(header, ">i2")
    content = encoded(sound_N, 100)
    for start in range(0, 900, 50):
        assert (
            decode_sound(content, 1000, RATE_HZ, "flac", start, start + 100) * 32768 == sound_N[start : start + 100]
        ).all()


def test_frames_of_various_lengths_are_read_as_a_whole():
    sound_N = noise(5000)
    content = bytearray(encode_flac(sound_N))
    content[8:10] = (16).to_bytes(2)  # the smallest block, where it stated the same as the largest
    assert flac.read_layout(bytes(content)) is None
    found_N = decode_sound(bytes(content), 5000, RATE_HZ, "flac", 1234, 2345)
    assert (found_N * 32768 == sound_N[1234:2345]).all()


def wav(sound_N):
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound_N[None], format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        container.mux(stream.encode(frame))
    return file.getvalue()


SOUND_N = noise(8000)
WHOLE = encoded(SOUND_N, 100)


@pytest.mark.parametrize(
    ("content", "num_samples", "message"),
    [
        (WHOLE, 8001, "holds 8000 audio samples, the metadata says 8001"),
        (WHOLE, 7999, "holds 8000 audio samples, the metadata says 7999"),
        (encoded(SOUND_N, 100, rate_hz=48000), 8000, "sound is 1 x s16 at 48000 Hz, expected mono s16 at 16000 Hz"),
        (WHOLE[: len(WHOLE) * 3 // 4], 8000, "audio samples, the metadata says 8000|sound cannot be decoded"),
        (b"fLaC", 8000, "sound cannot be decoded"),
        (WHOLE[:40], 8000, "sound cannot be decoded"),
        (b"", 8000, "sound cannot be decoded"),
    ],
)
def test_what_is_not_the_sound_is_named(content, num_samples, message):
    with pytest.raises(ShardError, match=rf"^a.tar: flac: .*({message}).*; rebuild this shard"):
        decode_sound(content, num_samples, RATE_HZ, "a.tar: flac", 100, 400)


def test_a_frame_that_was_overwritten_is_noticed():
    layout = flac.read_layout(WHOLE)
    damaged = bytearray(WHOLE)
    place = WHOLE.find(layout.header(3))
    damaged[place + 2 : place + 12] = b"\xff" * 10
    with pytest.raises(ShardError, match=r"audio samples, the metadata says 8000|cannot be decoded"):
        decode_sound(bytes(damaged), 8000, RATE_HZ, "flac", 150, 500)


def test_other_forms_of_sound_are_still_read():
    assert (decode_sound(wav(SOUND_N), 8000, RATE_HZ, "wav", 100, 400) * 32768 == SOUND_N[100:400]).all()
