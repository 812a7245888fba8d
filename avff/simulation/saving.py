"""How often to save, and what share of the time is training, where jobs fail at random.

Saving overlaps training (avff.engine.saver): a save holds the ranks up for `blocked` seconds, and is of use only once it
is committed, `lag` seconds later. A failure costs what was done since the last committed save, and a restart.

Source:
    Young, "A first order approximation to the optimum checkpoint interval", 1974; Daly, "A higher order estimate of the
    optimum checkpoint interval for restart dumps", 2006: its complete model of a run's time, and its interval. What they call
    the dump is `blocked` here; `lag`, which they have not, is lost work at each failure, as a restart is.
"""

import math
from collections.abc import Callable


def best_interval(blocked_seconds: float, mean_seconds_between_failures: float) -> float:
    """Returns the seconds of training between two saves that lose the least time (Daly's estimate)."""
    delta, mean = blocked_seconds, mean_seconds_between_failures
    if math.isinf(mean):
        return math.inf
    if delta >= 2 * mean:
        return mean
    ratio = math.sqrt(delta / (2 * mean))
    return math.sqrt(2 * delta * mean) * (1 + ratio / 3 + ratio**2 / 9) - delta


def goodput(
    interval_seconds: float,
    *,
    blocked_seconds: float,
    lag_seconds: float,
    restart_seconds: float,
    mean_seconds_between_failures: float,
) -> float:
    """Returns training's share of the time, where failures follow a Poisson process (Daly's complete model).

    Args:
        interval_seconds: of training between two saves.
        lag_seconds: from the end of the blocked part of a save to its commit.
    """
    mean, cycle = mean_seconds_between_failures, interval_seconds + blocked_seconds
    if math.isinf(mean):
        return interval_seconds / cycle
    lost = restart_seconds + lag_seconds
    if cycle / mean > 500 or lost / mean > 500:
        return 0.0  # a segment as good as never succeeds
    return interval_seconds / (mean * math.exp(lost / mean) * math.expm1(cycle / mean))


def rarest(
    share: Callable[[float], float], best_steps: int, num_steps: int, step_seconds: float, *, least_share: float
) -> int:
    """Returns the most steps between two saves, up to all of a run, that keep training's share; it falls beyond the best.

    Args:
        share: `goodput` of the seconds between two saves.
        best_steps: whose share is at least `least_share`.
    """
    low, high = best_steps, max(best_steps, num_steps)
    while low < high:
        middle = (low + high + 1) // 2
        if share(middle * step_seconds) >= least_share:
            low = middle
        else:
            high = middle - 1
    return low
