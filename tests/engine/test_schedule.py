"""The learning rate is a pure function of the step with the right ends."""

import pytest

from avff.config import OptimConfig
from avff.engine.schedule import learning_rate_factor


def factors(**values) -> list[float]:
    config = OptimConfig(**values)
    return [learning_rate_factor(step, config) for step in range(config.num_steps)]


def test_warms_up_linearly_to_the_peak_and_falls_to_the_minimum():
    found = factors(num_steps=10, warmup_steps=4, min_learning_rate_factor=0.1)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[6] == pytest.approx(0.55)  # half way down the cosine, half way between 1 and 0.1
    assert found[-1] == pytest.approx(0.1)
    assert found[3:] == sorted(found[3:], reverse=True)


def test_no_update_has_rate_zero_and_the_edges_work():
    assert min(factors(num_steps=5, warmup_steps=5)) == pytest.approx(0.2)
    assert factors(num_steps=1, warmup_steps=0, min_learning_rate_factor=0.5) == [0.5]
