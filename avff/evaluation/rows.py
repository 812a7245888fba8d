"""The row of results: one per clip and detector, written as JSON lines and as CSV.

A clip that no model can judge (no face, no sound, too short) has a row with its `status` and without scores: it is
*undecided*, counted, and never given 0.5. A clip without a row is *missing*, and while one is missing no metric
is given.
"""

import csv
import dataclasses
import io
import json
import types
import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avff.errors import EvaluationError
from avff.files import write_durably
from avff.schema import Label

LIST_SEPARATOR = ";"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one detector says about one clip. Labels: 0 real, 1 fake, None unknown; scores are None when undecided."""

    run: str
    detector: str
    checkpoint_sha256: list[str]
    """Of every weight file that had a part in the score."""
    dataset: str
    split: str
    key: str
    source_key: str
    track: int | None = None
    """The face that decided; -1 is the whole frame."""
    window_aggregation: str
    group_ids: list[str]
    status: list[str]
    """["OK"], or every reason why the clip is undecided."""
    is_fake: Label
    video_is_fake: Label
    audio_is_fake: Label
    category: str | None
    methods: list[str]
    fake_logit: float | None = None
    fake_probability: float | None = None
    threshold: float | None = None
    """On the probability, chosen on validation; None when the checkpoint has none."""
    predicted: Label = None
    """1 where the probability is at or above the threshold."""
    video_fake_logit: float | None = None
    audio_fake_logit: float | None = None
    num_windows: int = 0
    leading_silence_seconds: float | None = None
    """Sound below 5e-4 at the start of the clip: a known shortcut of fake data sets (docs/method.md)."""
    seconds_spent: float = 0.0
    """Loading and scoring, shared evenly among the windows of a batch."""

    def __post_init__(self) -> None:
        if self.decided != (self.fake_logit is not None and self.fake_probability is not None):
            raise EvaluationError(
                f"clip {self.key!r}: status {self.status} does not fit fake_logit={self.fake_logit}, "
                f"fake_probability={self.fake_probability}; only OK clips are scored"
            )

    @property
    def decided(self) -> bool:
        return self.status == ["OK"]

    @property
    def label(self) -> str:
        """Names the scorer in tables and legends."""
        return f"{self.detector} ({self.run})"

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What may come only once in a table."""
        return self.run, self.detector, self.dataset, self.key


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one detector and how many there should be.

    Attributes:
        expected: clips of the split.
        missing: {key: reason} of clips that could not be read.
    """

    rows: list[Row]
    expected: int
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_unique(self.rows)

    @property
    def decided(self) -> list[Row]:
        return [row for row in self.rows if row.decided]

    @property
    def undecided(self) -> list[Row]:
        return [row for row in self.rows if not row.decided]

    @property
    def complete(self) -> bool:
        return len(self.rows) == self.expected

    def require_complete(self) -> None:
        """Raises EvaluationError naming the missing clips; metrics on a part of the split would flatter or libel."""
        if self.complete:
            return
        named = "".join(f"\n  {key}: {reason}" for key, reason in list(self.missing.items())[:10])
        raise EvaluationError(
            f"scored {len(self.rows)} / {self.expected} clips, so no metric is given{named}\n"
            "Rebuild the shards that hold them, or pass --allow-missing for metrics of the clips that were scored."
        )


def check_unique(rows: Iterable[Row]) -> None:
    """Raises EvaluationError when a detector has two rows for one clip."""
    doubled = [identity for identity, count in Counter(row.identity for row in rows).items() if count > 1]
    if doubled:
        run, detector, dataset, key = doubled[0]
        raise EvaluationError(
            f"{len(doubled)} clips have several rows of one detector, first key {key!r} of dataset {dataset!r} "
            f"(run {run!r}, detector {detector!r}); evaluate shard directories that share keys one by one"
        )


# ------------------------------------------------------------------------------------------- files


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    """Writes one JSON object per line, whole or not at all."""
    check_unique(rows)
    _write(path, "".join(json.dumps(dataclasses.asdict(row), allow_nan=False) + "\n" for row in rows))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes a header and one line per row, whole or not at all; lists are joined by `;`, None is empty."""
    check_unique(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows([_to_text(getattr(row, name)) for name in _FIELDS] for row in rows)
    _write(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Reads what `write_jsonl` or `write_csv` wrote, by suffix.

    Raises:
        EvaluationError: no such file, a line of another form, or a clip that comes twice.
    """
    if not path.is_file():
        raise EvaluationError(f"{path}: no such table of results")
    with path.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
    rows = [_row(record, f"{path}, row {number}", path.suffix == ".csv") for number, record in enumerate(records, 1)]
    check_unique(rows)
    return rows


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text.encode())


def _row(record: dict[str, Any], where: str, from_text: bool) -> Row:
    if set(record) != set(_FIELDS):
        difference = sorted(set(record) ^ set(_FIELDS), key=str)
        raise EvaluationError(f"{where}: fields {difference} are missing or unknown; written by another version?")
    try:
        return Row(**{name: _from_text(_KINDS[name], record[name]) if from_text else record[name] for name in _FIELDS})
    except ValueError as error:
        raise EvaluationError(f"{where}: {error}") from error


def _to_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return LIST_SEPARATOR.join(map(str, value))
    return repr(value) if isinstance(value, float) else str(value)


def _from_text(kind: Any, text: str) -> Any:
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return text.split(LIST_SEPARATOR) if text else []
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return None if text == "" else _from_text(choices[0], text)
    return int(text) if typing.get_origin(kind) is typing.Literal else kind(text)


_FIELDS = [item.name for item in dataclasses.fields(Row)]
_KINDS = typing.get_type_hints(Row)
