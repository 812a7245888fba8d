"""Which curves share a chart, and which charts stand together."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from avff.report.curves import Axes, Clock, Column, Curves, metric_curves, system_curves
from avff.report.runs import Run


class Line(NamedTuple):
    """One curve.

    Attributes:
        run: index of the run.
        host: the node, for what each of them measures; empty elsewhere.
    """

    run: int
    host: str
    axes: Axes
    column: Column


class Chart(NamedTuple):
    """Curves of one name.

    Attributes:
        about: what the number means, or which others have the same values.
        is_noisy: smoothing helps to read it.
    """

    name: str
    about: str
    is_noisy: bool
    lines: list[Line]


class Group(NamedTuple):
    """Charts under one heading; `note` says what was left out."""

    title: str
    note: str
    charts: list[Chart]


SYSTEM, OTHER, COUNTS = "System", "Losses and their parts", "Data and faults"
GROUPS = {
    # heading: the names that belong there; what fits nowhere is part of a loss
    OTHER: "$^",
    "Validation": "validation/",
    "Gradient norms": "gradient_norm/",
    "Learning rates": "learning_rate/",
    "Speed and memory": "clips_per_second|step_seconds|data_wait_seconds|mfu|goodput|memory_gib|save_|validation seconds",
    COUNTS: "substituted_samples|skipped_updates|spikes|rewinds",
    SYSTEM: "system/",
}
NOISY = frozenset({OTHER, "Gradient norms", "Speed and memory", SYSTEM})
ABOUT = {
    "loss": "the sum that is minimised",
    "data_wait_seconds": "per step, without a batch to work on",
    "goodput": "share of the time since the first start spent in updates that count",
    "mfu": "model FLOP/s over the device's peak",
    "memory_gib": "most that rank 0 held: on the GPU, or resident on a CPU",
    "save_blocked_seconds": "that the newest save held up training",
    "substituted_samples": "could not be decoded, and were replaced",
    "skipped_updates": "not finite",
    "validation/reconstruction": "the best checkpoint has the lowest",
    "validation/auc": "the best checkpoint has the highest",
    "validation/threshold": "fake probability with the best balanced accuracy",
}


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Returns every chart of a page; a heading without charts is left out."""
    lines: dict[str, list[Line]] = {}
    for index, run in enumerate(runs):
        clock = Clock(run)
        for host, prefix, curves in _sources(run, clock):
            for name, column in curves.columns.items():
                if np.isfinite(column.mean_N).any() or column.is_bad_N.any():
                    lines.setdefault(prefix + name, []).append(Line(index, host, curves.axes, column))
    by_heading: dict[str, list[Chart]] = {heading: [] for heading in GROUPS}
    for name, curves_of_name in lines.items():
        heading = _heading(name)
        chart = Chart(name, ABOUT.get(name, ""), heading in NOISY, curves_of_name)
        by_heading[heading].append(chart)
    groups = [_make_group(heading, charts) for heading, charts in by_heading.items()]
    return [group for group in groups if group.charts or group.note]


def _sources(run: Run, clock: Clock) -> Iterable[tuple[str, str, Curves]]:
    """Yields (host, what goes before the names, curves)."""
    yield "", "", metric_curves(run, "train", clock)
    validation = metric_curves(run, "validation", clock)
    names = {"seconds": "validation seconds"}
    yield "", "", Curves(validation.axes, {names.get(name, name): c for name, c in validation.columns.items()})
    for host in run.system:
        yield host, "system/", system_curves(run, host, clock)


def _heading(name: str) -> str:
    return next((heading for heading, pattern in GROUPS.items() if re.match(pattern, name)), OTHER)


def _make_group(heading: str, charts: list[Chart]) -> Group:
    if heading != COUNTS:
        return Group(heading, "", _merge_equal(charts))
    zero = [chart.name for chart in charts if all(_is_zero(line) for line in chart.lines)]
    note = f"Stayed at 0: {', '.join(zero)}." if zero else ""
    return Group(heading, note, [chart for chart in charts if chart.name not in zero])


def _is_zero(line: Line) -> bool:
    return not line.column.is_bad_N.any() and not np.nan_to_num(line.column.high_N).any()


def _merge_equal(charts: Sequence[Chart]) -> list[Chart]:
    """Leaves out charts that would look like one before them, such as the rates of layers that learn alike."""
    kept: list[Chart] = []
    for chart in charts:
        twin = next((i for i, other in enumerate(kept) if _are_equal(chart.lines, other.lines)), None)
        if twin is None:
            kept.append(chart)
        else:
            also = "; ".join(filter(None, [kept[twin].about, f"equal to {chart.name.rpartition('/')[2]}"]))
            kept[twin] = kept[twin]._replace(about=also)
    return kept


def _are_equal(lines: Sequence[Line], others: Sequence[Line]) -> bool:
    return len(lines) == len(others) and all(
        a.run == b.run
        and a.host == b.host
        and a.axes is b.axes
        and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a.column, b.column, strict=True))
        for a, b in zip(lines, others, strict=True)
    )
