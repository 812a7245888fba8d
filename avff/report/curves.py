"""Records of a run as columns over step, clips seen and time, thin enough for a page."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from avff.report.runs import Run

MAX_POINTS = 1500
"""Of one curve on the page: more than a chart has pixels. Longer ones are averaged over runs of lines."""

PLACES = frozenset({"step", "samples_seen", "time_unix"})
"""Numbers of a line that say where it stands; the others are measured."""

GPU = re.compile(r"^gpu\d+_")


class Axes(NamedTuple):
    """Where each point of a curve stands; elapsed seconds count from the run's first start, NaN where nobody knows."""

    step_N: np.ndarray
    samples_seen_N: np.ndarray
    elapsed_seconds_N: np.ndarray


class Column(NamedTuple):
    """One number over the points of a curve; NaN where it was not measured.

    Attributes:
        low_N, high_N: least and greatest of what a point stands for: several lines, or several devices.
        is_bad_N: a measured value of the point was infinite or no number; it is left out of the others.
    """

    mean_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray
    is_bad_N: np.ndarray


class Curves(NamedTuple):
    """Columns over common axes."""

    axes: Axes
    columns: dict[str, Column]


class Clock:
    """Tells a run's step and clips seen from the time and back, by its training lines.

    Attributes:
        origin_unix: when the run started for the first time; NaN where no line says so.
    """

    def __init__(self, run: Run):
        lines = [line for line in run.of_kind("train") if "time_unix" in line]
        times = [line["time_unix"] for line in [*run.starts[:1], *lines[:1]]]
        self.origin_unix = min(times, default=float("nan"))
        self._step = np.array([0, *(line["step"] for line in lines)], dtype=float)
        self._samples_seen = np.array([0, *(line["samples_seen"] for line in lines)], dtype=float)
        time_unix = np.array([self.origin_unix, *(line["time_unix"] for line in lines)], dtype=float)
        self._time_unix = np.maximum.accumulate(time_unix)  # a machine's clock may be set back

    def at_step(self, step: int) -> tuple[float, float]:
        """Returns clips seen and elapsed seconds when training had done so many updates."""
        time_unix = np.interp(step, self._step, self._time_unix)
        return float(np.interp(step, self._step, self._samples_seen)), float(time_unix) - self.origin_unix

    def axes_of_lines(self, lines: Sequence[Mapping[str, Any]]) -> Axes:
        """Places lines of metrics.jsonl; one without a time stands where training had its step."""
        step = np.array([line["step"] for line in lines], dtype=float)
        by_step = np.interp(step, self._step, self._time_unix)
        own = np.array([line.get("time_unix", np.nan) for line in lines], dtype=float)
        time_unix = np.where(np.isnan(own), by_step, own)
        return Axes(step, np.array([line["samples_seen"] for line in lines], dtype=float), time_unix - self.origin_unix)

    def axes_of_times(self, time_unix: Sequence[float]) -> Axes:
        """Places moments; those before the first training line stand between step 0 and it."""
        times = np.array(time_unix, dtype=float)
        step = np.interp(times, self._time_unix, self._step)
        return Axes(step, np.interp(times, self._time_unix, self._samples_seen), times - self.origin_unix)


def metric_curves(run: Run, kind: str, clock: Clock) -> Curves:
    """Returns everything measured in the run's lines of one kind."""
    lines = run.of_kind(kind)
    return thin(Curves(clock.axes_of_lines(lines), columns(lines)))


def system_curves(run: Run, host: str, clock: Clock) -> Curves:
    """Returns everything measured on one node; several devices are one column with their spread."""
    lines = [line for line in run.system[host] if "time_unix" in line]
    return thin(Curves(clock.axes_of_times([line["time_unix"] for line in lines]), columns(lines)))


def columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Returns the numbers of lines by name, in the order in which they first appear.

    Numbers of several GPUs share one column.
    """
    sources: dict[str, dict[str, None]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in PLACES and isinstance(value, int | float):
                sources.setdefault(GPU.sub("gpu_", name), {})[name] = None
    return {name: _column([[line.get(source) for line in lines] for source in sources[name]]) for name in sources}


def _column(values_SN: Sequence[Sequence[float | None]]) -> Column:
    """Joins the values of several sources; None is not measured."""
    numbers_SN = np.array(values_SN, dtype=float)
    is_measured_SN = np.array([[value is not None for value in values] for values in values_SN])
    is_finite_SN = np.isfinite(numbers_SN)
    numbers_SN[~is_finite_SN] = np.nan
    return Column(
        mean_N=_quotients(np.nansum(numbers_SN, axis=0), is_finite_SN.sum(axis=0)),
        low_N=np.fmin.reduce(numbers_SN),
        high_N=np.fmax.reduce(numbers_SN),
        is_bad_N=(is_measured_SN & ~is_finite_SN).any(axis=0),
    )


def thin(curves: Curves, max_points: int = MAX_POINTS) -> Curves:
    """Averages over runs of neighbouring points where there are too many; their spread is kept."""
    num_points = len(curves.axes.step_N)
    if num_points <= max_points:
        return curves
    starts = np.linspace(0, num_points, max_points, endpoint=False).astype(int)
    axes = Axes(*(_means(axis_N, starts) for axis_N in curves.axes))
    return Curves(axes, {name: _thin_column(column, starts) for name, column in curves.columns.items()})


def _thin_column(column: Column, starts: np.ndarray) -> Column:
    return Column(
        mean_N=_means(column.mean_N, starts),
        low_N=np.fmin.reduceat(column.low_N, starts),
        high_N=np.fmax.reduceat(column.high_N, starts),
        is_bad_N=np.logical_or.reduceat(column.is_bad_N, starts),
    )


def _means(values_N: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Means of runs of values, NaN left out."""
    is_known_N = ~np.isnan(values_N)
    counts = np.add.reduceat(is_known_N.astype(float), starts)
    sums = np.add.reduceat(np.where(is_known_N, values_N, 0.0), starts)
    return _quotients(sums, counts)


def _quotients(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means; NaN where nothing was counted."""
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
