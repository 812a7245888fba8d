"""Detections joined into face tracks: numbers in, numbers out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from avff.build_config import FaceConfig
from avff.media.crops import FacePath

MIN_IOU = 0.3
"""Overlap with a track's last box that makes a detection its next one."""
MAX_GAP_SECONDS = 1.0
"""A face unseen for longer starts a new track; identities join the two."""
MAX_EXTENSION_SECONDS = 0.5
"""A track that begins or ends this close to its segment's border is held to that border."""
_MIN_SCORE = 0.7
"""Weaker detections do not even continue a track."""
_SAME_SECONDS = 1e-6


@dataclass(frozen=True)
class Detection:
    """One face in one picture.

    Attributes:
        seconds: when the picture begins in the source.
        box: x0, y0, x1, y1 in upright source pixels.
        score: the detector's probability.
        picture_HWC: the small copy that the detector saw, for embeddings; uint8 RGB.
        scale: pixels of the small copy per source pixel.
    """

    seconds: float
    box: np.ndarray
    score: float
    picture_HWC: np.ndarray
    scale: float


@dataclass
class LinkedTrack:
    """Detections of one face in order of time."""

    detections: list[Detection] = field(default_factory=list)

    @property
    def start_seconds(self) -> float:
        return self.detections[0].seconds

    @property
    def stop_seconds(self) -> float:
        return self.detections[-1].seconds


def link_detections(detections: Sequence[Detection], config: FaceConfig) -> list[LinkedTrack]:
    """Joins detections through time, best overlap first, and keeps the tracks that FaceConfig accepts."""
    tracks: list[LinkedTrack] = []
    for seconds in sorted({d.seconds for d in detections}):
        usable = [d for d in detections if d.seconds == seconds and _is_usable(d, config)]
        running = [t for t in tracks if seconds - t.stop_seconds <= MAX_GAP_SECONDS]
        _continue_tracks(tracks, running, usable)
    return [track for track in tracks if _is_accepted(track, config)]


def _is_usable(detection: Detection, config: FaceConfig) -> bool:
    x0, y0, x1, y1 = detection.box
    return detection.score >= _MIN_SCORE and min(x1 - x0, y1 - y0) >= config.min_face_pixels


def _continue_tracks(tracks: list[LinkedTrack], running: list[LinkedTrack], found: list[Detection]) -> None:
    pairs = [
        (iou(track.detections[-1].box, detection.box), t, d)
        for t, track in enumerate(running)
        for d, detection in enumerate(found)
    ]
    used_tracks: set[int] = set()
    used_detections: set[int] = set()
    for overlap, t, d in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if overlap >= MIN_IOU and t not in used_tracks and d not in used_detections:
            running[t].detections.append(found[d])
            used_tracks.add(t)
            used_detections.add(d)
    tracks += [LinkedTrack([detection]) for d, detection in enumerate(found) if d not in used_detections]


def _is_accepted(track: LinkedTrack, config: FaceConfig) -> bool:
    sure = [d.seconds for d in track.detections if d.score >= config.min_probability]
    return len(sure) >= config.min_detections and sure[-1] - sure[0] >= config.min_track_seconds


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the intersection over the union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if sides.min() <= 0:
        return 0.0
    common = float(np.prod(sides))
    return common / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


def lay_on_frames(
    track: LinkedTrack, times_T: np.ndarray, *, smooth_seconds: float, frame_seconds: float, look_seconds: float
) -> FacePath:
    """Returns the track on a segment's stored frames: interpolated over gaps, held to near borders, smoothed.

    Args:
        times_T: when the picture of each stored frame begins in the source, seconds, ascending.
        smooth_seconds: standard deviation of the Gaussian over time.
        frame_seconds: duration of a stored frame.
        look_seconds: time between two looks of the detector.
    """
    seen_N = np.array([d.seconds for d in track.detections])
    boxes_N4 = np.stack([d.box for d in track.detections])
    reach = max(MAX_EXTENSION_SECONDS, look_seconds)  # where the detector would not have looked again, nothing is lost
    start = times_T[0] if seen_N[0] - times_T[0] <= reach else seen_N[0]
    stop = times_T[-1] if times_T[-1] - seen_N[-1] <= reach else seen_N[-1]
    # A track may lie between two stored pictures; the nearest one then shows it.
    inside = np.flatnonzero((times_T >= start - _SAME_SECONDS) & (times_T <= stop + _SAME_SECONDS))
    if not len(inside):
        inside = np.array([np.abs(times_T - start).argmin()])
    own_T = times_T[inside]
    boxes_T4 = np.stack([np.interp(own_T, seen_N, boxes_N4[:, c]) for c in range(4)], axis=1)
    distance_TN = np.abs(own_T[:, None] - seen_N[None, :])
    return FacePath(
        first_frame=int(inside[0]),
        boxes_T4=smooth(boxes_T4, smooth_seconds / frame_seconds),
        scores_T=np.array([d.score for d in track.detections])[distance_TN.argmin(axis=1)],
        detected_T=distance_TN.min(axis=1) <= look_seconds / 2 + _SAME_SECONDS,
    )


def smooth(values_TC: np.ndarray, std_frames: float) -> np.ndarray:
    """Gaussian smoothing over time; the ends are continued by point reflection, so that steady motion stays steady."""
    radius = min(round(3 * std_frames), len(values_TC) - 1)
    if radius < 1:
        return values_TC
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std_frames) ** 2)
    kernel /= kernel.sum()
    before = 2 * values_TC[0] - values_TC[radius:0:-1]
    after = 2 * values_TC[-1] - values_TC[-2 : -radius - 2 : -1]
    padded = np.concatenate([before, values_TC, after])
    return np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], axis=1)
