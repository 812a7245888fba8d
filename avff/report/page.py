"""The report itself: one HTML file with everything in it, that asks no network for anything."""

import base64
import json
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from avff.errors import ConfigError
from avff.files import write_durably
from avff.report import tables
from avff.report.charts import Group, Line, make_groups
from avff.report.curves import Axes, Clock
from avff.report.marks import marks_of, place
from avff.report.runs import Run, panel_step, read_runs

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
SIGNIFICANT_DIGITS = 6
MAX_NAMES = 4
"""Of runs in the page's title."""
LESS_THAN = "\\u003c"
"""In JSON within HTML, where `</script>` in a name would end the data."""


class Written(NamedTuple):
    """A report that was written."""

    path: Path
    num_runs: int
    num_charts: int
    num_bytes: int


def write_report(paths: Sequence[Path], output: Path, *, smoothing: float = 0.0) -> Written:
    """Writes the page of one or more runs, whole or not at all.

    Args:
        paths: run folders, or folders of run folders.
        smoothing: where the page's slider stands at first, in [0, 1).

    Raises:
        CheckpointError: a path is no run folder, a file in one is damaged, or no run has metrics.
        ConfigError: `output` is a folder.
    """
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; name the page in it: {output / 'report.html'}")
    runs, left_out = read_runs(paths)
    groups = make_groups(runs)
    page = render(runs, groups, left_out, smoothing=smoothing).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_durably(output, page)
    return Written(output, len(runs), sum(len(group.charts) for group in groups), len(page))


def render(runs: Sequence[Run], groups: Sequence[Group], notes: Sequence[str] = (), *, smoothing: float = 0.0) -> str:
    """Returns the page as HTML text."""
    now_unix = time.time()
    title = ", ".join(run.label for run in runs) if len(runs) <= MAX_NAMES else f"{len(runs)} runs"
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_unix))
    sections = [
        _section("Where the configs differ", tables.differences(runs)),
        _section("Starts", tables.starts(runs)),
        _section("What happened to the data", tables.ledger(runs)),
        _section("Newest reconstructions", _panels(runs)),
    ]
    data = json.dumps({**_data(runs, groups), "smoothing": smoothing}, separators=(",", ":"), allow_nan=False)
    return Template(_resource("page.html")).substitute(
        policy=POLICY,
        title=tables.text(title),
        written=written,
        notes=_notes(notes),
        overview=tables.overview(runs, now_unix=now_unix),
        sections="".join(sections),
        style=_resource("page.css"),
        data=data.replace("<", LESS_THAN),
        script="".join(_resource(name) for name in ("plot.js", "chart.js", "page.js")),
    )


def _resource(name: str) -> str:
    return files("avff.report").joinpath(name).read_text()


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{tables.text(note)}</p>' for note in notes)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{tables.text(title)}</h2>{body}</section>\n" if body else ""


def _panels(runs: Sequence[Run]) -> str:
    figures = []
    for index, run in enumerate(runs):
        for path in run.panels[-1:]:
            picture = base64.b64encode(path.read_bytes()).decode()
            caption = f"{tables.swatch(index)}{tables.text(run.label)}, step {panel_step(path):,}"
            figures.append(
                f'<figure><figcaption>{caption}</figcaption><img alt="what the model saw and filled in" '
                f'src="data:image/png;base64,{picture}"></figure>'
            )
    return f'<div class="panels">{"".join(figures)}</div>' if figures else ""


# ------------------------------------------------------------------------------------------- data of the curves


def _data(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, Any]:
    """What plot.js and page.js draw from; lines name their axes by number, since many share them."""
    axes: dict[int, tuple[int, Axes]] = {}
    for group in groups:
        for chart in group.charts:
            for line in chart.lines:
                axes.setdefault(id(line.axes), (len(axes), line.axes))
    numbers = {key: number for key, (number, _) in axes.items()}
    return {
        "runs": [{"label": run.label, "marks": _marks(run)} for run in runs],
        "axes": [_axes(found) for _, found in axes.values()],
        "groups": [
            {
                "title": group.title,
                "note": group.note,
                "charts": [
                    {**chart._asdict(), "lines": [_line(line, numbers[id(line.axes)]) for line in chart.lines]}
                    for chart in group.charts
                ],
            }
            for group in groups
        ],
    }


def _marks(run: Run) -> list[dict[str, Any]]:
    clock = Clock(run)
    marks = ((mark, place(mark, clock)) for mark in marks_of(run))
    return [
        {"kind": m.kind, "text": m.text, "step": step, "samples": round(samples), "time": _plain(seconds)}
        for m, (step, samples, seconds) in marks
    ]


def _axes(axes: Axes) -> dict[str, list[float | None]]:
    return {
        "step": [_tenths(value) for value in axes.step_N.tolist()],
        "samples": [round(value) for value in axes.samples_seen_N.tolist()],
        "time": [_tenths(value) for value in axes.elapsed_seconds_N.tolist()],
    }


def _line(line: Line, axes: int) -> dict[str, Any]:
    column = line.column
    values: dict[str, Any] = {"run": line.run, "axes": axes, "y": _list(column.mean_N)}
    if not np.array_equal(column.low_N, column.high_N, equal_nan=True):
        values |= {"low": _list(column.low_N), "high": _list(column.high_N)}
    if column.is_bad_N.any():
        values["bad"] = np.flatnonzero(column.is_bad_N).tolist()
    if line.host:
        values["host"] = line.host
    return values


def _list(values_N: np.ndarray) -> list[float | None]:
    return [_plain(float(f"{value:.{SIGNIFICANT_DIGITS}g}")) for value in values_N.tolist()]


def _tenths(value: float) -> float | None:
    return int(value) if value.is_integer() else _plain(round(value, 1))


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value
