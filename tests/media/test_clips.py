"""A raw file into samples: sound against picture, segments, statuses, crops."""

import io
import sys

import av
import numpy as np
import pytest
from media_files import Pictures, Sound, noise, solid, steady, write_media

from avff.build_config import BuildConfig
from avff.errors import ConfigError, MediaError
from avff.media.clips import MediaClip, make_clips
from avff.media.faces import _detector


def decode_video(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def decode_sound(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]) / 32768


def flashes(clip: MediaClip, member: str = "frame") -> list[float]:
    """Seconds in the sample at which the picture turns bright."""
    bright_T = decode_video(clip.videos[member]).mean(axis=(1, 2, 3)) > 128
    return [n / clip.video.fps for n in np.flatnonzero(np.diff(bright_T.astype(int), prepend=0) == 1)]


def beeps(clip: MediaClip) -> list[float]:
    """Seconds in the sample at which sound sets in after at least 0.1 s of silence."""
    loud = np.flatnonzero(np.abs(decode_sound(clip.flac)) > 0.1) / 16000
    return [loud[0], *loud[1:][np.diff(loud) > 0.1]]


FRAME = BuildConfig(mode="frame", profile="evidence")
SOURCE_FPS = 30
# Unequal gaps: an error of a whole period cannot pass.
FLASH_SECONDS = [0.4, 1.3, 3.0, 3.7, 5.8, 8.2]


def write_flash_and_beep(path, *, video_start: float, audio_start: float, jitter: float = 0.0):
    """Flashes of 0.2 s with beeps at the same moment; both streams start at their own time."""
    times = np.arange(0, 9, 1 / SOURCE_FPS)
    bright = np.any([(times >= s - 1e-6) & (times < s + 0.2 - 1e-6) for s in FLASH_SECONDS], axis=0)
    frames = np.where(bright[:, None, None, None], 235, 20).astype(np.uint8) * np.ones((1, 96, 96, 3), np.uint8)
    moved = np.random.default_rng(0).uniform(0, jitter, len(times))
    moved[0] = 0
    clock = np.arange(round((9 + video_start - audio_start) * 44100)) / 44100 + audio_start - video_start
    on = np.any([(clock >= s) & (clock < s + 0.2) for s in FLASH_SECONDS], axis=0)
    tone = 0.5 * np.cos(2 * np.pi * 1000 * clock) * on
    video = Pictures(list(times + moved + video_start), frames)
    return write_media(path, [video], [Sound(audio_start, 44100, np.stack([tone, tone]))])


@pytest.mark.parametrize(
    ("video_start", "audio_start", "jitter", "profile"),
    [
        (0.0, 0.0, 0.0, "pretrain"),
        (0.0, 0.37, 0.0, "evidence"),
        (0.5, 0.13, 0.0, "evidence"),
        (0.5, 0.13, 0.0, "pretrain"),
        (0.2, 0.31, 0.015, "evidence"),
    ],
)
def test_flash_and_beep_stay_together(tmp_path, video_start, audio_start, jitter, profile):
    path = write_flash_and_beep(tmp_path / "sync.mov", video_start=video_start, audio_start=audio_start, jitter=jitter)
    (clip,) = make_clips(path, BuildConfig(mode="frame", profile=profile))
    seen, heard = np.array(flashes(clip)), np.array(beeps(clip))
    assert len(seen) == len(heard) == len(FLASH_SECONDS)
    assert np.abs(heard - FLASH_SECONDS).max() < 0.001
    assert np.abs(seen - FLASH_SECONDS).max() <= 0.5 / clip.video.fps + 1 / SOURCE_FPS
    if profile == "evidence":
        assert np.abs(seen - heard).max() <= 0.020 + jitter + 0.001
    assert clip.audio.offset_seconds == pytest.approx(audio_start - video_start, abs=1e-3)
    assert clip.audio.num_samples == round(clip.video.duration_seconds * 16000)


def test_segments_hold_the_same_moments_as_the_whole(tmp_path):
    path = write_flash_and_beep(tmp_path / "sync.mov", video_start=0.1, audio_start=0.2)
    (whole,) = make_clips(path, BuildConfig(mode="frame", profile="evidence"))
    config = BuildConfig(mode="frame", profile="evidence", segment_seconds=3.5, min_seconds=1.0)
    segments = make_clips(path, config)
    assert [clip.video.start_seconds for clip in segments] == [0.0, 3.52, 7.04]  # whole stored frames: 88 of 1/25 s
    assert sum(clip.video.num_frames for clip in segments) == whole.video.num_frames
    sound = np.concatenate([decode_sound(clip.flac) for clip in segments])
    assert np.array_equal(sound, decode_sound(whole.flac))
    assert [f + c.video.start_seconds for c in segments for f in flashes(c)] == pytest.approx(flashes(whole))


def test_short_remainder_is_dropped_and_a_short_file_kept(tmp_path):
    long = write_media(tmp_path / "long.mov", [steady(solid((99, 0, 0), 130), 25)], [noise(5.2)])
    assert [c.video.num_frames for c in make_clips(long, BuildConfig(mode="frame", segment_seconds=4.0))] == [20]
    short = write_media(tmp_path / "short.mov", [steady(solid((99, 0, 0), 25), 25)])
    (clip,) = make_clips(short, BuildConfig(mode="frame"))
    assert clip.status == ["NO_AUDIO", "TOO_SHORT"]
    assert clip.flac is None and not clip.audio.has_audio
    assert decode_video(clip.videos["frame"]).shape == (5, 256, 256, 3)


def test_whole_frames_keep_their_shape_and_are_upright(tmp_path):
    wide = solid((10, 10, 10), 100, (96, 64))
    wide[:, :, :30] = (250, 250, 250)  # bright on the left; turned right by 90 degrees it is at the top
    path = write_media(tmp_path / "turned.mov", [steady(wide, 25)], [noise(4.0)], rotation=-90)
    (clip,) = make_clips(path, BuildConfig(mode="frame"))
    picture = decode_video(clip.videos["frame"])[0]
    assert picture.shape == (384, 256, 3)
    assert picture[:100].mean() > 200 and picture[-100:].mean() < 50
    assert (clip.video.width, clip.video.height) == (64, 96)


def test_boxes_mode_follows_the_users_track(tmp_path):
    frames = solid((20, 20, 20), 100, (160, 96))
    for n, frame in enumerate(frames):
        frame[30:50, n : n + 20] = (240, 240, 240)  # moves by one pixel per frame
    path = write_media(tmp_path / "moving.mov", [steady(frames, 25)], [noise(4.0)])
    rows = np.array([[n / 25, n, 30, n + 20, 50] for n in (0, 20, 40, 60, 80, 99)])
    (clip,) = make_clips(path, BuildConfig(mode="boxes", side_pixels=64, crop_factor=2.0), {5: rows})
    assert list(clip.videos) == ["face0"]
    crops = decode_video(clip.videos["face0"])
    assert crops.shape == (20, 64, 64, 3)
    assert crops[:, 20:44, 20:44].mean() > 220 and crops[:, :, :12].mean() < 40
    (track,) = clip.tracks
    assert (track.identity, track.num_frames, track.crop_half_sides[0]) == (5, 20, 20.0)
    (without,) = make_clips(path, BuildConfig(mode="boxes"), {})
    assert without.status == ["NO_FACE"] and without.videos == {} and without.tracks == []


def test_missing_detector_names_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    _detector.cache_clear()
    path = write_media(tmp_path / "a.mov", [steady(solid((9, 9, 9), 30), 25)])
    with pytest.raises(ConfigError, match=r"pip install --no-deps facenet-pytorch==2\.6\.0"):
        make_clips(path, BuildConfig(mode="faces"))


def test_undecodable_file_raises_with_the_decoders_reason(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(256)) * 50)
    with pytest.raises(MediaError, match="cannot be decoded: Invalid data found"):
        make_clips(path, FRAME)
