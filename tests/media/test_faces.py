"""Faces of drawn talking heads, found and followed through the whole path."""

from pathlib import Path

import numpy as np
import pytest
from media_files import steady, write_media

from avff.build_config import BuildConfig, FaceConfig
from avff.media.clips import make_clips
from avff.media.reader import read_frames, upright_rgb
from avff.media.synthetic.talking_heads import SplitPlan, generate_talking_heads

pytestmark = pytest.mark.slow
CONFIG = BuildConfig(min_seconds=1.0, side_pixels=64)


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> list[np.ndarray]:
    """Pictures of two persons, one clip each."""
    output = tmp_path_factory.mktemp("heads")
    plan = {"train": SplitPlan(num_people=2, clips_per_person={"RVRA": 1})}
    generate_talking_heads(output, plan=plan, seed=3, num_workers=0, progress=False)
    paths = sorted(output.rglob("*.mp4"))
    return [read_pictures(path) for path in paths]


def read_pictures(path: Path) -> np.ndarray:
    return np.stack([upright_rgb(f.picture, (f.picture.width, f.picture.height)) for f in read_frames(path)])[:75]


def test_two_persons_side_by_side_are_two_tracks(tmp_path, heads):
    count = min(map(len, heads))
    both = np.concatenate([pictures[:count] for pictures in heads], axis=2)
    (clip,) = make_clips(write_media(tmp_path / "both.mp4", [steady(both, 25)]), CONFIG)
    assert set(clip.videos) == {"face0", "face1"}
    assert [track.num_frames for track in clip.tracks] == [clip.video.num_frames] * 2
    assert len({track.identity for track in clip.tracks}) == 2
    left, right = sorted(track.crop_centres[0][0] for track in clip.tracks)
    assert left < both.shape[2] / 2 < right
    assert all(np.mean(track.scores) > 0.9 and any(track.detected) for track in clip.tracks)


def test_a_person_who_comes_back_keeps_the_identity(tmp_path, heads):
    away = np.full_like(heads[0][:40], 90)
    pictures = np.concatenate([heads[0], away, heads[0][::-1]])
    (clip,) = make_clips(write_media(tmp_path / "back.mp4", [steady(pictures, 25)]), CONFIG)
    assert [track.identity for track in clip.tracks] == [0, 0]
    first, second = sorted(clip.tracks, key=lambda track: track.first_frame)
    assert first.first_frame + first.num_frames <= second.first_frame


def test_no_face_is_a_status_and_fewer_tracks_can_be_asked_for(tmp_path, heads):
    (empty,) = make_clips(write_media(tmp_path / "wall.mp4", [steady(np.full_like(heads[0], 90), 25)]), CONFIG)
    assert empty.status == ["NO_FACE", "NO_AUDIO"] and empty.videos == {}
    both = np.concatenate([heads[0], heads[1][: len(heads[0])]], axis=2)
    config = BuildConfig(min_seconds=1.0, side_pixels=64, faces=FaceConfig(max_tracks=1))
    (one,) = make_clips(write_media(tmp_path / "both.mp4", [steady(both, 25)]), config)
    assert list(one.videos) == ["face0"]


def test_segments_agree_on_who_is_who(tmp_path, heads):
    both = np.concatenate([heads[0], heads[1][: len(heads[0])]], axis=2)
    config = BuildConfig(min_seconds=1.0, segment_seconds=1.4, side_pixels=64)
    clips = make_clips(write_media(tmp_path / "both.mp4", [steady(both, 25)]), config)
    assert len(clips) == 2
    middle = both.shape[2] / 2
    sides = [{track.identity: track.crop_centres[0][0] < middle for track in clip.tracks} for clip in clips]
    assert len(sides[0]) == 2 and sides[0] == sides[1]
