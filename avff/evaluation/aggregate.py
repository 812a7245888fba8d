"""From windows to a clip: the one rule that validation, `evaluate` and `predict` share.

A track's score is the mean logit of its windows; a clip's score is the highest of its tracks, since one forged
face makes the clip a forgery. Each head follows the same rule on its own logits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from avff.errors import EvaluationError

WINDOW_AGGREGATION = "mean_logit_per_track_then_max_over_tracks"
DEFAULT_THRESHOLD = 0.5
"""On the fake probability; used, and said so, where a checkpoint holds none chosen on validation."""


class Logits(NamedTuple):
    """Natural-log odds of fake, one per head of the classifier; None for a head that the detector does not have."""

    overall: float
    video: float | None
    audio: float | None


class WindowScore(NamedTuple):
    """What the model said about one window of one track."""

    key: str
    track: int
    start_seconds: float
    logits: Logits


class TrackScore(NamedTuple):
    """Mean over the windows of one track."""

    track: int
    num_windows: int
    logits: Logits


class ClipScore(NamedTuple):
    """Scores of one clip.

    Attributes:
        track: the track that decided the overall logit, the lowest id among equals.
        logits: per head the maximum over tracks.
        tracks: every track, by id.
    """

    key: str
    track: int
    logits: Logits
    tracks: tuple[TrackScore, ...]


def aggregate(windows: Iterable[WindowScore]) -> dict[str, ClipScore]:
    """Returns {key: score}, in the order in which keys first come.

    Raises:
        EvaluationError: a window comes twice.
    """
    by_key: dict[str, dict[int, dict[float, Logits]]] = {}
    for window in windows:
        starts = by_key.setdefault(window.key, {}).setdefault(window.track, {})
        if window.start_seconds in starts:
            raise EvaluationError(
                f"clip {window.key!r}, track {window.track}: the window at {window.start_seconds} s was scored twice"
            )
        starts[window.start_seconds] = window.logits
    return {key: _clip_score(key, tracks) for key, tracks in by_key.items()}


def probability(logit: float) -> float:
    """Returns the fake probability of a logit, without overflow."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def known_probability(logit: float | None) -> float | None:
    """Returns the fake probability of a head that may be absent."""
    return None if logit is None else probability(logit)


def _clip_score(key: str, tracks: dict[int, dict[float, Logits]]) -> ClipScore:
    scores = tuple(
        TrackScore(track, len(starts), _per_head(_mean, list(starts.values())))
        for track, starts in sorted(tracks.items())
    )
    decisive = max(scores, key=lambda score: score.logits.overall)
    return ClipScore(key, decisive.track, _per_head(max, [score.logits for score in scores]), scores)


def _per_head(rule: Callable[[list[float]], float], logits: Sequence[Logits]) -> Logits:
    """Applies a rule to each head on its own; an absent head stays absent."""

    def apply(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return rule(known) if known else None

    return Logits(
        overall=rule([one.overall for one in logits]),
        video=apply([one.video for one in logits]),
        audio=apply([one.audio for one in logits]),
    )


def _mean(values: list[float]) -> float:
    # fsum is exact, so the mean does not depend on the order in which loader workers delivered the windows.
    return math.fsum(values) / len(values)
