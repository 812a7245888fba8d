"""Constant rate out of any other: how far an onset may move."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from avff.media.reader import ShownFrame
from avff.media.sampling import exact_rate, sample_frames, split_segments


def shown(starts: list[float], end: float) -> list[ShownFrame]:
    """Source frames that carry their own number as picture."""
    times = [Fraction(s).limit_denominator(10**6) for s in [*starts, end]]
    return [ShownFrame(a, b, n) for n, (a, b) in enumerate(itertools.pairwise(times))]


@pytest.mark.parametrize("fps", [5.0, 24.0, 25.0, 29.97])
def test_equal_rate_passes_unchanged_in_spite_of_jitter(fps):
    jitter = np.random.default_rng(1).uniform(-0.45, 0.45, 60)
    jitter[0] = 0
    frames = shown([(i + j) / fps for i, j in enumerate(jitter)], 60 / fps)
    assert [f.picture for f in sample_frames(frames, exact_rate(fps))] == list(range(60))


@pytest.mark.parametrize("stored_fps", [5.0, 25.0, 30.0])
def test_an_onset_moves_by_at_most_half_a_stored_frame(stored_fps):
    steps = np.random.default_rng(2).uniform(0.005, 0.08, 200)  # between 12 and 200 frames per second
    starts = [0.0, *np.cumsum(steps)]
    stored = list(sample_frames(shown(starts, starts[-1] + 0.3), exact_rate(stored_fps)))
    moves = []
    for n, start in enumerate(starts[1:], start=1):
        first = next((f.number for f in stored if f.picture >= n), None)
        if first is not None:
            moves.append(first / stored_fps - start)
    assert max(np.abs(moves)) <= 0.5 / stored_fps + 1e-9
    assert min(moves) < 0 < max(moves)  # to both sides: no drift


@pytest.mark.parametrize(
    ("duration", "expected"),
    [(3.2, 16), (3.19, 16), (3.15, 15), (0.1, 1), (0.05, 1), (10.0, 50), (13.013, 65)],
)
def test_a_frame_is_stored_if_the_source_covers_it(duration, expected):
    count = max(1, round(duration * 30))
    frames = shown([i / 30 for i in range(count)], duration)
    assert len(list(sample_frames(frames, Fraction(5)))) == expected


def test_nothing_in_nothing_out():
    assert list(sample_frames([], Fraction(5))) == []


def test_segments_follow_each_other_without_gap():
    frames = sample_frames(shown([i / 30 for i in range(390)], 13.0), Fraction(5))
    segments = [(n, [f.number for f in group]) for n, group in split_segments(frames, 50)]
    assert segments == [(0, list(range(50))), (1, list(range(50, 65)))]
