import json
import math

import pytest

from avff.engine.spikes import SpikeDetector
from avff.seeding import generator

FACTOR, WINDOW = 6.0, 40


def noisy(count: int, level: float = 2.0, noise: float = 0.1) -> list[float]:
    return list(level + noise * generator("spikes").normal(size=count))


def spikes_in(losses: list[float], detector: SpikeDetector) -> list[int]:
    return [i for i, loss in enumerate(losses) if detector.check(loss)]


@pytest.mark.parametrize("level", [2.0, 0.0, -3.0])
def test_a_jump_is_found_and_noise_is_not(level):
    losses = noisy(400, level)
    losses[150] = level + 1.0  # ten standard deviations, where 6 are allowed
    losses[300] = level - 1.0  # a loss that falls is no harm
    assert spikes_in(losses, SpikeDetector(FACTOR, WINDOW)) == [150]


def test_the_limit_is_the_median_plus_robust_deviations():
    losses = [1.0, 2.0, 3.0, 4.0, 5.0] * 4  # median 3, MAD 1
    limit = 3 + FACTOR * 1.4826
    assert not SpikeDetector(FACTOR, 20, losses).check(limit - 1e-9)
    assert SpikeDetector(FACTOR, 20, losses).check(limit + 1e-9)


def test_a_falling_loss_has_no_spike():
    noise = noisy(500, level=0.0, noise=0.05)
    losses = [1 + 5 * math.exp(-i / 100) + x for i, x in enumerate(noise)]
    assert spikes_in(losses, SpikeDetector(FACTOR, WINDOW)) == []


def test_spikes_do_not_raise_the_limit():
    losses = noisy(60)
    losses[30:50] = [10.0] * 20
    assert spikes_in(losses, SpikeDetector(FACTOR, WINDOW)) == list(range(30, 50))


@pytest.mark.parametrize("level", [2.0, -2.0])
def test_a_flat_window_takes_small_changes(level):
    flat = [level] * WINDOW
    assert not SpikeDetector(FACTOR, WINDOW, flat).check(level + 0.1)
    assert SpikeDetector(FACTOR, WINDOW, flat).check(level + 0.2)


@pytest.mark.parametrize(("window", "needed"), [(10, 10), (40, 20)])
def test_nothing_is_a_spike_before_there_is_enough_to_compare_with(window, needed):
    assert spikes_in([1.0] * (needed - 1) + [100.0], SpikeDetector(FACTOR, window)) == []
    assert spikes_in([1.0] * needed + [100.0], SpikeDetector(FACTOR, window)) == [needed]


def test_factor_zero_finds_none_and_still_fills_the_window():
    detector = SpikeDetector(0.0, WINDOW)
    assert spikes_in([1.0] * WINDOW + [100.0], detector) == []
    assert detector.state() == [1.0] * (WINDOW - 1) + [100.0]


def test_a_restored_detector_decides_as_the_first_to_the_bit():
    losses = noisy(200)
    losses[90] = losses[110] = 9.0
    whole = SpikeDetector(FACTOR, WINDOW)
    before, after = spikes_in(losses[:100], whole), spikes_in(losses[100:], whole)
    first = SpikeDetector(FACTOR, WINDOW)
    assert spikes_in(losses[:100], first) == before == [90]
    stored = json.loads(json.dumps(first.state()))  # as a checkpoint's state.json keeps it
    resumed = SpikeDetector(FACTOR, WINDOW, stored)
    assert spikes_in(losses[100:], resumed) == after == [10]
    assert resumed.state() == whole.state()


def test_a_shorter_window_keeps_the_newest():
    assert SpikeDetector(FACTOR, 10, [float(i) for i in range(40)]).state() == [float(i) for i in range(30, 40)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss):
    with pytest.raises(ValueError, match=f"loss {loss} is not finite"):
        SpikeDetector(FACTOR, WINDOW).check(loss)


def test_a_lasting_jump_that_training_accepts_is_soon_no_spike():
    detector = SpikeDetector(5.0, 20, [1.0 + 0.01 * (i % 3) for i in range(20)])
    found = []
    for _ in range(20):
        found.append(detector.check(3.0))
        if found[-1]:
            detector.add(3.0)
    assert found[0] and not found[-1]
