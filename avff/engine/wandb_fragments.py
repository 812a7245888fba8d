"""Merges what the starts of a run left in `runs/<name>/wandb/` into one wandb run, without a network.

Each start writes a fragment of its own. A kill takes the end of one; a start after it does steps again; a rewind makes
steps void. metrics.jsonl is the truth about all of that, so the merged run has exactly its steps and numbers. What only
wandb has comes from the newest fragment that agrees about the step: pictures, and what the nodes measured of
themselves. Checkpoints and alerts are taken from all.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from avff.engine.metrics_log import TIMING_FIELDS
from avff.engine.wandb_file import encode, new_record, read_records
from avff.errors import CheckpointError, is_final
from avff.json_lines import read_lines
from avff.run_folder import METRICS, SYSTEM

FOLDER = "wandb"
MERGED = "merged"

Items = Mapping[tuple[str, ...], str]
"""A row of wandb's history: nested key -> value as JSON."""


@dataclasses.dataclass(frozen=True)
class Fragment:
    """What one start wrote.

    Attributes:
        directory: wandb's run directory; its name begins with `offline-` unless the fragment was sent at once.
        records: all that could be read.
    """

    directory: Path
    records: list[Any]

    def of_kind(self, kind: str) -> list[Any]:
        return [record for record in self.records if record.WhichOneof("record_type") == kind]

    @cached_property
    def run(self) -> Any:
        """The run record: id, config, group, start time."""
        return self.of_kind("run")[0].run

    @cached_property
    def rows(self) -> dict[int, Items]:
        """Step -> row."""
        return {record.history.step.num: _items(record.history) for record in self.of_kind("history")}

    @property
    def was_sent(self) -> bool:
        return not self.directory.name.startswith("offline-")

    @property
    def started_seconds(self) -> float:
        return self.run.start_time.ToNanoseconds() / 1e9


@dataclasses.dataclass(frozen=True)
class Row:
    """One step of the merged run.

    Attributes:
        items: as in wandb's history, its own `_step`, `_timestamp` and `_runtime` included.
        media: files that the row shows; path in the run's `files/` -> where it lies.
        is_filled_in: whether no fragment has the step as metrics.jsonl tells it.
    """

    step: int
    items: Items
    media: dict[str, Path]
    is_filled_in: bool


@dataclasses.dataclass(frozen=True)
class MergedRun:
    """All fragments of a run as one.

    Attributes:
        num_dropped: rows of fragments that were redone or made void later.
    """

    run_dir: Path
    fragments: list[Fragment]
    rows: list[Row]
    num_dropped: int

    @property
    def id(self) -> str:
        return self.fragments[-1].run.run_id

    @cached_property
    def alerts(self) -> list[Any]:
        """Alert records, oldest first."""
        return [record for fragment in self.fragments for record in fragment.of_kind("alert")]

    @property
    def has_ended(self) -> bool:
        """Whether the run is over, so that no start is to follow by itself."""
        return any(is_final(record.exit.exit_code) for record in self._exit())

    def content(self, alerts: Sequence[Any]) -> bytes:
        """Returns wandb's transaction log of the merged run; the same fragments give the same bytes."""
        records = [*self._head(), *self._body(), self._summary(), *alerts, *self._exit()]
        return encode(_numbered(record, number) for number, record in enumerate(records, 1))

    def write(self, alerts: Sequence[Any]) -> Path:
        """Writes the merged run in place of an older one; returns its directory, for `wandb sync`."""
        folder = self.run_dir / FOLDER / MERGED
        shutil.rmtree(folder, ignore_errors=True)
        # wandb takes a directory for an offline run's by its name.
        directory = folder / f"offline-{self.fragments[0].directory.name.removeprefix('offline-')}"
        for path, source in ((path, source) for row in self.rows for path, source in row.media.items()):
            target = directory / "files" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                _link(source, target)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"run-{self.id}.wandb").write_bytes(self.content(alerts))
        return directory

    def _head(self) -> Iterator[Any]:
        """What describes the run: as the newest start knew it, begun when the first one did."""
        newest = self.fragments[-1]
        yield from newest.of_kind("header")
        for record in newest.of_kind("run"):
            copy = _copy(record)
            # Resuming would append to what the server has; the merged run replaces it.
            copy.run.resume = False
            copy.run.start_time.CopyFrom(self.fragments[0].run.start_time)
            yield copy
        for kind in ("environment", "telemetry", "metric"):
            yield from newest.of_kind(kind)

    def _body(self) -> Iterator[Any]:
        checkpoints = _checkpoints(self.fragments)
        for row in self.rows:
            for path in row.media:
                yield _files_record(path)
            yield _history_record(row)
        last_step = self.rows[-1].step if self.rows else 0
        yield from (record for step, record in sorted(checkpoints.items()) if step <= last_step)

    def _summary(self) -> Any:
        """The last value of everything."""
        last: dict[tuple[str, ...], str] = {}
        for row in self.rows:
            last.update(row.items)
        record = new_record()
        for key, value in last.items():
            record.summary.update.add(nested_key=key, value_json=value)
        return record

    def _exit(self) -> Iterator[Any]:
        """How the newest start ended; nothing while it goes on, or after a kill."""
        yield from self.fragments[-1].of_kind("exit")[-1:]


def merge(run_dir: Path) -> MergedRun:
    """Reads and merges a run's fragments; writes nothing.

    Raises:
        CheckpointError: no fragments, or of several runs of wandb.
    """
    fragments = read_fragments(run_dir)
    ids = sorted({fragment.run.run_id for fragment in fragments})
    if not ids:
        raise CheckpointError(f"{run_dir / FOLDER}: no run of wandb (was it trained with logging.wandb=disabled?)")
    if len(ids) > 1:
        raise CheckpointError(
            f"{run_dir / FOLDER}: fragments of several runs of wandb ({', '.join(ids)}), as in a folder that was "
            "copied or moved while it was trained; move those of all but one away"
        )
    lines = _lines_by_step(run_dir)
    rows: list[Row] = []
    for step in _steps(lines, fragments):
        numbers = lines.get(step, {})
        rows.append(_row(step, numbers, _source(fragments, step, numbers), rows[-1] if rows else None, fragments[0]))
    num_kept = sum(not row.is_filled_in for row in rows)
    return MergedRun(run_dir, fragments, rows, sum(len(fragment.rows) for fragment in fragments) - num_kept)


def read_fragments(run_dir: Path) -> list[Fragment]:
    """Returns a run's fragments in the order of their starts, without those that a kill left empty."""
    paths = [path for path in (run_dir / FOLDER).glob("*run-*/run-*.wandb") if not path.parent.is_symlink()]
    fragments = [Fragment(path.parent, read_records(path)) for path in sorted(paths)]
    return sorted((f for f in fragments if f.of_kind("run")), key=lambda fragment: fragment.started_seconds)


def _lines_by_step(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Returns the numbers of all lines of a step, as wandb is given them."""
    found: dict[int, dict[str, Any]] = {}
    for line in read_lines(run_dir / METRICS):
        numbers = {name: value for name, value in line.items() if name != "kind" and value is not None}
        found.setdefault(line["step"], {}).update(numbers)
    return found


def _steps(lines: dict[int, dict[str, Any]], fragments: list[Fragment]) -> list[int]:
    """Returns the steps of metrics.jsonl, and those up to its end of which there is only a picture."""
    last_step = max(lines, default=0)
    pictured = {step for f in fragments for step in f.rows if step <= last_step and _media(f, step)}
    return sorted(lines.keys() | pictured)


def _source(fragments: list[Fragment], step: int, numbers: dict[str, Any]) -> Fragment | None:
    """Returns the newest fragment that has a step as metrics.jsonl tells it; a step that a rewind made void differs."""
    for fragment in reversed(fragments):
        if step in fragment.rows and not differing(fragment.rows[step], numbers):
            return fragment
    return None


def differing(row: Items, numbers: dict[str, Any]) -> list[str]:
    """Returns the names of numbers, other than timings, that a row of wandb has with another value."""
    both = (name for name in numbers.keys() - TIMING_FIELDS if (name,) in row)
    return sorted(name for name in both if not _equal(json.loads(row[(name,)]), numbers[name]))


def _equal(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)  # NaN equals NaN


def _row(step: int, numbers: dict[str, Any], source: Fragment | None, before: Row | None, first: Fragment) -> Row:
    known = source.rows[step] if source else {}
    media = _media(source, step) if source else {}
    shown = {key[0] for key, value in known.items() if key[1:] == ("path",) and json.loads(value) in media}
    extras = {key: value for key, value in known.items() if key[0] in shown or key[0].startswith(f"{SYSTEM}/")}
    if not numbers:  # a picture of a step that was not logged
        numbers = {name: json.loads(known[(name,)]) for name in ("step", "samples_seen")}
    at = numbers.get("time_unix") or json.loads(known.get(("_timestamp",), "0")) or _timestamp(before, first)
    own = {"_step": step, "_timestamp": at, "_runtime": max(0.0, at - first.started_seconds)}
    items: Items = {(name,): json.dumps(value) for name, value in {**own, **numbers}.items()}
    return Row(step, {**items, **extras}, media, is_filled_in=source is None)


def _timestamp(row: Row | None, first: Fragment) -> float:
    return json.loads(row.items[("_timestamp",)]) if row else first.started_seconds


def _media(fragment: Fragment, step: int) -> dict[str, Path]:
    """Returns the files that a row shows and that are still there: path in `files/` -> where it lies."""
    row = fragment.rows[step]
    paths = [json.loads(value) for key, value in row.items() if len(key) > 1 and key[-1] == "path"]
    found = {path: fragment.directory / "files" / path for path in paths}
    return {path: source for path, source in found.items() if source.is_file()}


def _checkpoints(fragments: list[Fragment]) -> dict[int, Any]:
    """Returns step -> the newest artifact record about its checkpoint."""
    found = {}
    for record in (record for fragment in fragments for record in fragment.of_kind("artifact")):
        steps = [match[1] for alias in record.artifact.aliases if (match := re.fullmatch(r"step-(\d+)", alias))]
        found.update({int(step): record for step in steps})
    return found


def _items(history: Any) -> Items:
    return {tuple(item.nested_key) or (item.key,): item.value_json for item in history.item}


def _history_record(row: Row) -> Any:
    record = new_record()
    record.history.step.num = row.step
    for key, value in row.items.items():
        record.history.item.add(nested_key=key, value_json=value)
    return record


def _files_record(path: str) -> Any:
    record = new_record()
    record.files.files.add(path=path)
    return record


def _copy(record: Any) -> Any:
    copy = type(record)()
    copy.CopyFrom(record)
    return copy


def _numbered(record: Any, number: int) -> Any:
    copy = _copy(record)
    copy.num = number
    return copy


def _link(source: Path, target: Path) -> None:
    """A second name where the file system has such, which takes no room."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
