"""Windows to clips: mean logit per track, maximum over tracks."""

import math
import random

import pytest

from avff.errors import EvaluationError
from avff.evaluation.aggregate import Logits, WindowScore, aggregate, probability


def window(track: int, start: float, *logits: float, key: str = "a") -> WindowScore:
    return WindowScore(key, track, start, Logits(*logits))


def test_mean_over_windows_then_maximum_over_tracks_per_head():
    windows = [window(0, 0.0, 1, 5, -1), window(0, 3.2, 3, 7, -3), window(1, 0.0, 1.5, -4, 6)]
    (score,) = aggregate(windows).values()
    assert [(t.track, t.num_windows) for t in score.tracks] == [(0, 2), (1, 1)]
    assert score.tracks[0].logits == (2, 6, -2)
    assert score.track == 0
    assert score.logits == (2, 6, 6)


def test_a_head_that_a_detector_does_not_have_stays_absent():
    windows = [WindowScore("a", track, 0.0, Logits(float(track), None, None)) for track in (0, 1)]
    score = aggregate(windows)["a"]
    assert (score.track, score.logits) == (1, Logits(1.0, None, None))
    assert [track.logits for track in score.tracks] == [Logits(0.0, None, None), Logits(1.0, None, None)]


def test_order_of_windows_changes_nothing():
    rng = random.Random(0)
    windows = [
        window(t, s / 7, *(rng.gauss(0, 1e3) for _ in range(3)), key=k)
        for k in "ab"
        for t in range(2)
        for s in range(9)
    ]
    shuffled = rng.sample(windows, len(windows))
    assert aggregate(shuffled) == aggregate(windows)


def test_a_window_scored_twice_is_refused():
    with pytest.raises(EvaluationError, match=r"'a', track 1: the window at 3.2 s was scored twice"):
        aggregate([window(1, 3.2, 0, 0, 0), window(1, 3.2, 0, 0, 0)])


def test_probability_does_not_overflow():
    assert probability(0) == 0.5
    assert probability(1000) == 1 and probability(-1000) == 0
    assert probability(2.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert probability(-2.0) == pytest.approx(1 - probability(2.0))
