"""Files as a whole: pictures by number, equal to decord's to the bit, and sound as it is stored."""

import decord
import numpy as np
import pytest
from media_files import Pictures, Sound, noise, solid, steady, write_media

from avff.errors import MediaError
from avff.media.whole import read_native_sound, read_spread_pictures


def stripes(count, size=(96, 64)):
    """Returns moving coloured stripes, which no two conversions of colour show alike."""
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [np.stack([np.sin((x + 3 * i) / (5 + c) + y / 9) for c in range(3)], axis=-1) for i in range(count)]
    return (128 + 100 * np.stack(waves)).astype(np.uint8)


def first_middle_last(num_frames):
    return np.array([0, num_frames // 2, num_frames - 1])


@pytest.mark.parametrize("rotation", [0, 90])
def test_pictures_are_those_that_decord_reads(tmp_path, rotation):
    path = write_media(tmp_path / "x.mp4", [steady(stripes(30), 25)], rotation=rotation)
    spread = read_spread_pictures(path, first_middle_last, lambda picture_HWC: picture_HWC)
    reader = decord.VideoReader(str(path))
    assert (spread.num_frames, spread.duration_seconds) == (len(reader), pytest.approx(1.2))
    for picture_HWC, index in zip(spread.pictures, (0, 15, 29), strict=True):
        assert np.array_equal(picture_HWC, reader[index].asnumpy())
    assert spread.pictures[0].shape == ((96, 64, 3) if rotation else (64, 96, 3))


def test_a_picture_that_is_wanted_twice_comes_twice_and_is_prepared_once(tmp_path):
    path = write_media(tmp_path / "x.mp4", [steady(stripes(2), 25)])
    prepared = []

    def prepare(picture_HWC):
        prepared.append(picture_HWC)
        return picture_HWC[:1]

    spread = read_spread_pictures(path, lambda num_frames: np.array([0, 0, num_frames - 1]), prepare)
    assert [picture.shape for picture in spread.pictures] == [(1, 96, 3)] * 3 and len(prepared) == 2


def test_pictures_are_counted_by_the_decoder_where_packets_are_more(tmp_path):
    """Two pictures at one time: the later one is what a player shows, so that there is one less than packets."""
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]
    frames = np.concatenate([solid(colour, 1) for colour in colours])
    path = write_media(tmp_path / "x.mp4", [Pictures([0.0, 0.04, 0.04, 0.08], frames)])
    spread = read_spread_pictures(path, first_middle_last, lambda picture_HWC: picture_HWC)
    assert spread.num_frames == 3
    found = [picture.reshape(-1, 3).mean(axis=0) for picture in spread.pictures]
    assert np.abs(np.array(found) - np.array([colours[0], colours[2], colours[3]])).max() < 12


def test_sound_keeps_its_channels_and_rate_to_the_bit(tmp_path):
    sound = noise(0.7, rate_hz=44100, channels=2)
    path = write_media(tmp_path / "x.mov", [steady(solid((9, 9, 9), 20), 25)], [sound])
    found = read_native_sound(path)
    assert found.rate_hz == 44100 and found.samples_CN.dtype == np.float32
    stored_CN = np.round(sound.samples_CN * 32767).astype(np.int16)
    assert np.array_equal(found.samples_CN[:, : stored_CN.shape[1]] * 32768, stored_CN)


def test_no_sound_is_none_and_no_picture_is_an_error(tmp_path):
    mute = write_media(tmp_path / "mute.mp4", [steady(solid((9, 9, 9), 5), 25)])
    assert read_native_sound(mute) is None
    blind = write_media(tmp_path / "blind.mov", [], [Sound(0.0, 16000, np.zeros((1, 4000)))])
    with pytest.raises(MediaError, match="holds no video stream") as caught:
        read_spread_pictures(blind, first_middle_last, lambda picture_HWC: picture_HWC)
    assert caught.value.reason == "NO_VIDEO"
    (tmp_path / "torn.mp4").write_bytes(b"\0" * 999)
    with pytest.raises(MediaError, match="cannot be decoded"):
        read_spread_pictures(tmp_path / "torn.mp4", first_middle_last, lambda picture_HWC: picture_HWC)
