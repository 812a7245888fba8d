"""Records of a run as columns over step, clips seen and time, thin enough for a page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from avff.report.runs import Run

MAX_POINTS = 1500
"""Of one curve on the page: more than a chart has pixels. Longer ones are averaged over runs of lines."""

PLACES = frozenset({"step", "samples_seen", "time_unix"})
"""Numbers of a line that say where it stands; the others are measured."""


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

    Numbers within sections are named `section/name`; those of the items of a list share one column.
    """
    found: dict[str, Column] = {}
    for index, line in enumerate(lines):
        numbers: dict[str, list[float]] = {}
        for name, number in _numbers(line, ""):
            numbers.setdefault(name, []).append(number)
        for name, values in numbers.items():
            column = found.setdefault(name, _empty(len(lines)))
            finite = [value for value in values if np.isfinite(value)]
            column.is_bad_N[index] = len(finite) < len(values)
            if finite:
                column.mean_N[index] = sum(finite) / len(finite)
                column.low_N[index], column.high_N[index] = min(finite), max(finite)
    return found


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if name or key not in PLACES:
                yield from _numbers(part, f"{name}/{key}" if name else key)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _empty(count: int) -> Column:
    mean_N, low_N, high_N = np.full((3, count), np.nan)
    return Column(mean_N, low_N, high_N, np.zeros(count, dtype=bool))


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
    return np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
