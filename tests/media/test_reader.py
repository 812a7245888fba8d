"""Raw media by presentation time stamps."""

import logging

import numpy as np
import pytest
from media_files import Pictures, Sound, noise, solid, steady, write_media

from avff.errors import MediaError
from avff.media.reader import probe, read_frames, upright_rgb


def test_variable_frame_rate_keeps_every_time(tmp_path):
    seconds = [0.2, 0.25, 0.4, 0.41, 1.1, 1.5]
    path = write_media(tmp_path / "vfr.mp4", [Pictures(seconds, solid((90, 90, 90), 6))])
    shown = list(read_frames(path))
    assert [float(f.start_seconds) for f in shown] == pytest.approx([s - 0.2 for s in seconds], abs=1e-3)
    assert [f.stop_seconds for f in shown[:-1]] == [f.start_seconds for f in shown[1:]]
    assert shown[-1].stop_seconds > shown[-1].start_seconds


def test_start_offsets_of_sound_and_picture(tmp_path):
    video = steady(solid((90, 90, 90), 10), 25, start_seconds=0.4)
    late = write_media(tmp_path / "late.mov", [video], [noise(0.4, start_seconds=0.6)])
    early = write_media(tmp_path / "early.mov", [video], [noise(0.4, start_seconds=0.1)])
    assert probe(late).audio_offset_seconds == pytest.approx(0.2, abs=1e-3)
    assert probe(early).audio_offset_seconds == pytest.approx(-0.3, abs=1e-3)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotated_pictures_come_out_upright(tmp_path, rotation):
    upright = solid((0, 0, 0), 3, (64, 96))  # 64 wide, 96 high
    upright[:, :32, :32] = (255, 0, 0)  # top left corner is red
    stored = np.stack([np.rot90(picture, -rotation // 90) for picture in upright])
    path = write_media(tmp_path / "turned.mp4", [steady(stored, 25)], rotation=rotation)
    info = probe(path)
    assert (info.width, info.height) == (64, 96)
    picture = upright_rgb(next(read_frames(path)).picture, (64, 96))
    assert np.abs(picture.astype(int) - upright[0]).mean() < 6


def test_colours_and_scaling(tmp_path):
    path = write_media(tmp_path / "red.mp4", [steady(solid((200, 40, 30), 3, (96, 64)), 25)])
    picture = upright_rgb(next(read_frames(path)).picture, (48, 32))
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture.astype(int) - (200, 40, 30)).max() <= 4


def test_best_of_several_streams_is_taken_and_logged(tmp_path, caplog):
    rich = np.random.default_rng(0).integers(0, 255, (10, 96, 128, 3), dtype=np.uint8)
    poor = solid((0, 0, 0), 10, (64, 64))
    path = write_media(tmp_path / "two.mov", [steady(poor, 25), steady(rich, 25)], [noise(0.4)], default_video=1)
    with caplog.at_level(logging.INFO):
        info = probe(path)
    assert (info.width, info.height) == (128, 96)
    assert "2 video streams, taking FFmpeg's best, number 1" in caplog.text


def test_file_without_sound(tmp_path):
    info = probe(write_media(tmp_path / "mute.mp4", [steady(solid((9, 9, 9), 3), 25)]))
    assert info.audio_start_seconds is None
    assert info.audio_offset_seconds == 0


def test_file_without_video(tmp_path):
    path = write_media(tmp_path / "sound.mov", [], [Sound(0.0, 16000, np.zeros((1, 8000)))])
    with pytest.raises(MediaError, match=r"sound\.mov: holds no video stream") as caught:
        probe(path)
    assert caught.value.reason == "NO_VIDEO"


def test_not_a_media_file(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("hello")
    with pytest.raises(MediaError, match=r"text\.mp4: cannot be decoded: Invalid data") as caught:
        probe(path)
    assert caught.value.reason == "UNDECODABLE"


def test_damage_in_the_middle_is_an_error(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 96, 96, 3), dtype=np.uint8)
    path = write_media(tmp_path / "torn.mp4", [steady(frames, 25)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60000] = b"\xff" * 60000
    path.write_bytes(content)
    assert probe(path).width == 96
    with pytest.raises(MediaError, match="cannot be decoded"):
        list(read_frames(path))
