"""Sound to the sample."""

import itertools

import numpy as np
import pytest
from media_files import Sound, noise, solid, steady, write_media

from avff.media.audio import AudioLine
from avff.media.reader import probe


def read(path, start, stop):
    return AudioLine(path, probe(path)).read(start, stop)


def video(start_seconds: float = 0.0):
    return steady(solid((9, 9, 9), 50), 25, start_seconds)


def test_mono_16k_passes_bit_exactly(tmp_path):
    sound = noise(2.0)
    samples = read(write_media(tmp_path / "a.mov", [video()], [sound]), 0, 32000)
    assert np.array_equal(samples, np.round(sound.samples_CN[0] * 32767).astype(np.int16))


@pytest.mark.parametrize("shift", [0.3, -0.25])
def test_shifted_start_lands_where_a_player_puts_it(tmp_path, shift):
    sound = noise(1.0, start_seconds=0.5 + shift)
    path = write_media(tmp_path / "a.mov", [video(start_seconds=0.5)], [sound])
    samples = read(path, 0, 24000)
    expected = np.zeros(24000, np.int16)
    source, first = np.round(sound.samples_CN[0] * 32767).astype(np.int16), round(shift * 16000)
    expected[max(0, first) : first + 16000] = source[max(0, -first) :]
    assert np.array_equal(samples, expected)


def test_stereo_44k_is_averaged_and_resampled_in_place(tmp_path):
    time = np.arange(44100 * 2) / 44100
    left = 0.5 * np.sin(2 * np.pi * 440 * time) * (time > 0.7)
    path = write_media(tmp_path / "a.mov", [video()], [Sound(0.0, 44100, np.stack([left, np.zeros_like(left)]))])
    samples = read(path, 0, 32000).astype(float) / 32767
    own = np.arange(32000) / 16000
    expected = 0.25 * np.sin(2 * np.pi * 440 * own) * (own > 0.7)
    inside = np.abs(own - 0.7) > 0.01
    assert np.abs(samples - expected)[inside][:-200].max() < 2e-3


def test_pieces_equal_the_whole(tmp_path):
    path = write_media(tmp_path / "a.mov", [video()], [noise(2.0, 22050, 2)])
    whole = read(path, 0, 32000)
    line = AudioLine(path, probe(path))
    cuts = [0, 1, 777, 12000, 12000, 31999, 32000]
    pieces = [line.read(a, b) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.concatenate([p for p in pieces if p is not None]), whole)


def test_beyond_the_sound_there_is_none(tmp_path):
    path = write_media(tmp_path / "a.mov", [video()], [noise(0.5)])
    line = AudioLine(path, probe(path))
    first = line.read(0, 16000)
    assert np.any(first[7900:8000]) and not np.any(first[8000:])
    assert line.read(16000, 32000) is None
    assert read(write_media(tmp_path / "mute.mp4", [video()]), 0, 100) is None
