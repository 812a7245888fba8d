"""Notices a loss that jumps out of those before it."""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

MAD_TO_STD = 1.4826
"""A normal distribution's standard deviation as a multiple of its median absolute deviation."""
FLAT_FRACTION = 0.01
"""Least deviation assumed, as a share of the median: a window that hardly varies would call noise a spike."""
MIN_VALUES = 10


class SpikeDetector:
    """Compares each loss with the median of the last ones, in robust standard deviations.

    Median and MAD are unmoved by a few outliers, where mean and standard deviation would grow with the first spike
    and hide the second. The loss is the mean over ranks, so every rank decides alike without a collective.
    """

    def __init__(self, factor: float, window: int, losses: Iterable[float] = ()):
        """
        Args:
            factor: deviations above the median that make a spike; 0 finds none.
            window: losses compared with. Nothing is a spike before half of them are there, or 10.
            losses: the `state` to go on from; of a longer window, its newest.
        """
        self.factor = factor
        self._losses = deque(losses, maxlen=window)

    def check(self, loss: float) -> bool:
        """Returns whether the loss of an applied update is a spike; if it is not, later ones are compared with it.

        Raises:
            ValueError: the loss is not finite; such an update is skipped, and none of the detector's business.
        """
        if not math.isfinite(loss):
            raise ValueError(f"loss {loss} is not finite; only losses of applied updates can be compared")
        is_spike = self.factor > 0 and self._is_ready and loss > self._limit()
        if not is_spike:
            self.add(loss)
        return is_spike

    def add(self, loss: float) -> None:
        """Compares later losses with this one, too; for a spike after which training goes on, lest a lasting jump
        be one for ever."""
        self._losses.append(loss)

    def state(self) -> list[float]:
        """Returns what a checkpoint keeps: a detector made from it decides exactly as this one."""
        return list(self._losses)

    @property
    def _is_ready(self) -> bool:
        return len(self._losses) >= max(MIN_VALUES, (self._losses.maxlen or 0) // 2)

    def _limit(self) -> float:
        middle = median(self._losses)
        deviation = MAD_TO_STD * median(abs(loss - middle) for loss in self._losses)
        return middle + self.factor * max(deviation, FLAT_FRACTION * abs(middle))
