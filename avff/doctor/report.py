"""All answers as lines: nodes that say the same share one, odd ones out are named."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avff.doctor.check import Check, Measure, Status

COLOURS = {Status.OK: "\033[32m", Status.WARN: "\033[33m", Status.FAIL: "\033[31m"}
NO_COLOUR = "\033[0m"
WORTH_NAMING = 2.0
"""Nodes with the lowest and highest number are named when they differ by such a factor."""


@dataclass(frozen=True)
class Line:
    """One answer.

    Attributes:
        nodes: that gave it, where others gave another one; none where all agree.
        measured: its numbers in words, over these nodes.
    """

    name: str
    check: Check
    nodes: tuple[str, ...]
    measured: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Attributes:
        title: what was looked at.
        per_node: node -> name of the check -> answer.
        together: answers about all nodes together, by name.
    """

    title: str
    per_node: Mapping[str, Mapping[str, Check]]
    together: Mapping[str, Check]

    @property
    def lines(self) -> list[Line]:
        names = dict.fromkeys(name for checks in self.per_node.values() for name in checks)
        found = [line for name in names for line in _lines_of(name, self.per_node)]
        return found + [Line(name, check, (), _measured({"": check})) for name, check in self.together.items()]

    @property
    def has_failed(self) -> bool:
        return any(line.check.status is Status.FAIL for line in self.lines)


def _lines_of(name: str, per_node: Mapping[str, Mapping[str, Check]]) -> list[Line]:
    """Groups nodes by answer, the most common answer first."""
    groups: dict[tuple[str, str, str], dict[str, Check]] = {}
    for node, checks in per_node.items():
        if name in checks:
            check = checks[name]
            groups.setdefault((check.status, check.value, check.fix), {})[node] = check
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [
        Line(name, next(iter(group.values())), tuple(group) if len(groups) > 1 else (), _measured(group))
        for group in ordered
    ]


def _measured(group: Mapping[str, Check]) -> tuple[str, ...]:
    """Returns every measure of a group of nodes as words: `812 MB/s`, or `write 12 (n7) to 830 (n2) MB/s`."""
    first = next(iter(group.values()))
    words = []
    for place, (label, _, unit) in enumerate(first.measures):
        numbers = {node: check.measures[place].number for node, check in group.items()}
        low, high = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
        apart = numbers[high] > WORTH_NAMING * numbers[low]
        ends = [f"{_short(numbers[node])}{f' ({node})' * apart}" for node in (low, high)]
        words.append(f"{label} {' to '.join(dict.fromkeys(ends))} {unit}")
    return tuple(words)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def as_text(report: Report, *, width: int = 0, colours: bool = False) -> str:
    """Returns the report as one line per answer.

    Args:
        width: of a terminal, at which lines are folded; 0 folds none.
    """
    lines = report.lines
    name_width = max((len(line.name) for line in lines), default=0)
    rows = [report.title, *(_row(line, name_width, width, colours) for line in lines)]
    return "\n".join([*rows, _closing(lines)])


def _row(line: Line, name_width: int, width: int, colours: bool) -> str:
    check = line.check
    nodes = f"{shorten(line.nodes)}: " if line.nodes else ""
    measured = f"; {', '.join(line.measured)}" if line.measured else ""
    fix = f" -> {check.fix}" if check.fix else ""
    row = f"{check.status:<4}  {line.name:<{name_width}}  {nodes}{check.value}{measured}{fix}"
    if width:
        row = textwrap.fill(row, width, subsequent_indent=" " * (name_width + 8), break_on_hyphens=False)
    return row.replace(check.status, f"{COLOURS[check.status]}{check.status}{NO_COLOUR}", 1) if colours else row


def shorten(nodes: Sequence[str]) -> str:
    """Returns names as SLURM writes them: `n[1-3,7] login`."""
    by_stem: dict[tuple[str, int], list[str]] = {}
    for node in nodes:
        stem, digits = re.fullmatch(r"(.*?)(\d*)", node).groups()  # type: ignore[union-attr]
        by_stem.setdefault((stem, len(digits)), []).append(digits)
    return " ".join(stem + _ranges(numbers) for (stem, _), numbers in by_stem.items())


def _ranges(numbers: list[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    runs: list[list[str]] = []
    for number in sorted(numbers, key=int):
        if runs and int(number) == int(runs[-1][-1]) + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return f"[{','.join(run[0] if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)}]"


def _closing(lines: Sequence[Line]) -> str:
    count = {status: sum(line.check.status is status for line in lines) for status in Status}
    if count[Status.FAIL]:
        return (
            f"{count[Status.FAIL]} FAIL, {count[Status.WARN]} warn, {count[Status.OK]} ok: mend what FAILs, then train"
        )
    if count[Status.WARN]:
        return f"{count[Status.WARN]} warn, {count[Status.OK]} ok: training can start"
    return f"all {count[Status.OK]} ok"


def as_json(report: Report) -> str:
    """Returns the report for programs: every answer of every node."""
    values = {
        "title": report.title,
        "ok": not report.has_failed,
        "nodes": {node: _plain(checks) for node, checks in report.per_node.items()},
        "together": _plain(report.together),
    }
    return json.dumps(values, indent=1)


def _plain(checks: Mapping[str, Check]) -> dict:
    return {
        name: {**check.to_dict(), "measures": list(map(_plain_measure, check.measures))}
        for name, check in checks.items()
    }


def _plain_measure(measure: Measure) -> dict:
    return measure._asdict()
