"""Detections joined into tracks, without a detector."""

import numpy as np
import pytest

from avff.build_config import FaceConfig
from avff.media.tracks import Detection, LinkedTrack, iou, lay_on_frames, link_detections, smooth

CONFIG = FaceConfig()


def seen(seconds: float, x: float, score: float = 0.99, side: float = 60) -> Detection:
    box = np.array([x, 20.0, x + side, 20.0 + side])
    return Detection(seconds, box, score, np.zeros((4, 4, 3), np.uint8), 1.0)


def test_two_faces_that_move_past_time_become_two_tracks():
    found = [seen(t, 10 + 40 * t) for t in np.arange(0, 2, 0.2)] + [seen(t, 300 - 40 * t) for t in np.arange(0, 2, 0.2)]
    tracks = link_detections(found, CONFIG)
    assert [len(track.detections) for track in tracks] == [10, 10]
    for track in tracks:
        assert max(np.abs(np.diff([d.box[0] for d in track.detections]))) < 10


@pytest.mark.parametrize(
    ("found", "accepted"),
    [
        ([seen(t, 10) for t in (0.0, 0.3, 0.6)], 1),
        ([seen(t, 10) for t in (0.0, 0.6)], 0),  # two detections
        ([seen(t, 10) for t in (0.0, 0.2, 0.4)], 0),  # shorter than half a second
        ([seen(0.0, 10), seen(0.3, 10, 0.85), seen(0.6, 10)], 0),  # only two of them confident
        ([seen(t, 10, side=30) for t in (0.0, 0.3, 0.6)], 0),  # smaller than 40 pixels
        ([seen(t, 10) for t in (0.0, 0.3, 0.6, 1.9, 2.2, 2.5)], 2),  # gone for over a second
        ([seen(t, 10) for t in (0.0, 0.3, 0.6, 1.4, 1.7)], 1),  # gone for less
    ],
)
def test_acceptance_and_gaps(found, accepted):
    assert len(link_detections(found, CONFIG)) == accepted


def test_overlap_of_boxes():
    assert iou(np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])) == pytest.approx(1 / 3)
    assert iou(np.array([0, 0, 2, 2]), np.array([2, 0, 3, 2])) == 0


def test_smoothing_leaves_steady_motion_and_damps_jitter():
    line_TC = np.stack([np.arange(40.0), 100 - 2 * np.arange(40.0)], axis=1)
    assert smooth(line_TC, 3.0) == pytest.approx(line_TC)
    jitter_TC = np.random.default_rng(0).normal(size=(200, 1))
    assert smooth(jitter_TC, 3.0).std() < 0.4
    assert len(smooth(line_TC[:2], 3.0)) == 2


def test_track_is_interpolated_and_held_to_near_borders():
    track = LinkedTrack([seen(t, 100 * t) for t in (0.3, 0.8, 1.2)])
    path = lay_on_frames(track, np.arange(0, 3, 0.1), smooth_seconds=0.0, frame_seconds=0.1, look_seconds=0.1)
    assert path.first_frame == 0  # 0.3 s from the start: held
    assert path.num_frames == 13  # 1.8 s before the end: ends with its last detection
    assert path.boxes_T4[[0, 3, 5, 12], 0] == pytest.approx([30, 30, 50, 120])
    assert np.flatnonzero(path.detected_T).tolist() == [3, 8, 12]


def test_track_between_two_stored_frames_keeps_one():
    track = LinkedTrack([seen(t, 5) for t in (10.3, 10.5, 10.6)])
    path = lay_on_frames(track, np.arange(0.0, 30.0, 1.0), smooth_seconds=0.4, frame_seconds=1.0, look_seconds=0.2)
    assert (path.first_frame, path.num_frames) == (10, 1)
