"""CSV files that name media and say what is known about them.

`video_name,target` is the Open-AVFF header (target: 1 fake, 0 real, empty unknown). Any of these columns may be added:

    video_name or source_path        path below the CSV's folder (or --root)
    target or is_fake                0 real, 1 fake, empty unknown; so too video_is_fake, audio_is_fake
    category                         RVRA RVFA FVRA FVFA, instead of or beside the two above
    dataset, split                   split is train, val, test or empty
    group_ids, methods               lists separated by `;`
    fake_segments_seconds            JSON such as {"video": [[1.0, 2.5]], "audio": []}, in the file's own time
"""

import csv
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from avff.errors import ConfigError, ShardError
from avff.schema import Category, FakeSegments, Label, Split, complete_labels

_ALIASES = {"video_name": "name", "source_path": "name", "target": "is_fake"}
_SHOWN_PROBLEMS = 20


def read_table(path: Path, root: Path, extra_columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Reads a CSV into field values of Source, `path` and `name` first.

    Args:
        root: folder that the names are relative to.
        extra_columns: columns that go into `extra` as text.

    Raises:
        ConfigError: the header, a value, a missing file or a name that comes twice; all problems together.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        fields = _read_header(path, list(reader.fieldnames or ()), extra_columns)
        problems: list[str] = []
        rows = []
        seen: dict[str, int] = {}
        for row in reader:
            where = f"line {reader.line_num}"
            values = _read_row(row, fields, extra_columns, where, problems)
            name = values.get("name", "")
            if name in seen:
                problems.append(f"{where}: {name!r} is also in line {seen[name]}")
            seen[name] = reader.line_num
            values["path"] = root / name
            if not name or not values["path"].is_file():
                problems.append(f"{where}: no file {values['path']}")
            rows.append(values)
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        shown = problems[:_SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise ConfigError(f"{path}: " + "\n  ".join([f"{len(problems)} problems", *shown]))
    return rows


def _read_header(path: Path, header: list[str], extra_columns: tuple[str, ...]) -> dict[str, str]:
    """Returns the Source field of every known column."""
    known = {**{name: name for name in _READERS if name != "name"}, **_ALIASES}
    problems = []
    for column in header:
        if column not in known and column not in extra_columns:
            near = difflib.get_close_matches(column, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"to keep it as it is, add --extra-columns {column}"
            problems.append(f"unknown column {column!r}; {hint}")
    fields = {column: known[column] for column in header if column in known and column not in extra_columns}
    problems += [f"--extra-columns {column}: no such column" for column in extra_columns if column not in header]
    for name in sorted(set(fields.values())):
        if len(columns := [c for c in fields if fields[c] == name]) > 1:
            problems.append(f"columns {' and '.join(columns)} say the same; keep one")
    if "name" not in fields.values():
        problems.append("no column video_name; the smallest header is video_name,target")
    if problems:
        raise ConfigError(f"{path}: " + "\n  ".join(["wrong header", *problems, f"known columns: {', '.join(known)}"]))
    return fields


def _read_row(
    row: dict[str, Any], fields: dict[str, str], extra_columns: tuple[str, ...], where: str, problems: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if None in row or None in row.values():
        problems.append(f"{where}: has another number of cells than the header")
        return values
    for column, name in fields.items():
        text = row[column].strip()
        try:
            value = _READERS[name](text)
        except ValueError as error:
            problems.append(f"{where}: {column} is {text!r}; {error}")
            continue
        if value not in (None, ""):
            values[name] = value
    category = values.pop("category", None)
    labels = [values.get(name) for name in ("is_fake", "video_is_fake", "audio_is_fake")]
    try:
        labels = _merge_category(category, labels)
        complete_labels(*labels)
    except ShardError as error:
        problems.append(f"{where}: {error}")
    values.update(zip(("is_fake", "video_is_fake", "audio_is_fake"), labels, strict=True))
    if extra_columns:
        values["extra"] = {column: row[column] for column in extra_columns}
    return values


def _merge_category(category: str | None, labels: list[Label]) -> list[Label]:
    if category is None:
        return labels
    implied: list[Label] = [1 if category[0] == "F" else 0, 1 if category[2] == "F" else 0]
    for name, given, meant in zip(("video_is_fake", "audio_is_fake"), labels[1:], implied, strict=True):
        if given not in (None, meant):
            raise ShardError(f"category {category} contradicts {name}={given}")
    return [labels[0], *implied]


def _label(text: str) -> Label:
    if text not in ("", "0", "1"):
        raise ValueError("write 0 (real), 1 (fake) or nothing (unknown)")
    return None if text == "" else (1 if text == "1" else 0)


def _choice(*choices: str) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        if text and text not in choices:
            raise ValueError(f"write one of {', '.join(choices)} or nothing")
        return text or None

    return read


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _fake_segments(text: str) -> FakeSegments | None:
    if not text:
        return None
    try:
        values = json.loads(text)
        stretches = {kind: [[float(a), float(b)] for a, b in values.pop(kind, [])] for kind in ("video", "audio")}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'write JSON such as {{"video": [[1.0, 2.5]], "audio": []}} ({error})') from error
    if values or any(a >= b for pairs in stretches.values() for a, b in pairs):
        raise ValueError("keys are video and audio; each stretch is [start, stop] with start < stop")
    return FakeSegments(**stretches)


_READERS: dict[str, Callable[[str], Any]] = {
    "name": lambda text: Path(text).as_posix() if text else "",
    "is_fake": _label,
    "video_is_fake": _label,
    "audio_is_fake": _label,
    "category": _choice(*get_args(Category)),
    "dataset": str,
    "split": _choice(*(name for name in get_args(Split) if name)),
    "group_ids": _list,
    "methods": _list,
    "fake_segments_seconds": _fake_segments,
}
