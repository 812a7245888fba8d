"""`avff predict` for a folder: one CSV row per file, continued after an interruption, never ended by a bad file."""

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from avff.building.sources import VIDEO_SUFFIXES
from avff.errors import EvaluationError, MediaError
from avff.evaluation.aggregate import probability
from avff.files import write_durably
from avff.inference.detector import Detector
from avff.inference.predict import Prediction, predict_files
from avff.inference.predict_files import PART_TIMEOUT_SECONDS
from avff.inference.report import name_track
from avff.progress import progress_bar

Format = Literal["avff", "open-avff"]
OPEN_AVFF_HEADER = "video_name,y_pred"
_AS_THEY_ARE = "surrogateescape"
"""Names are bytes to the file system, and not always UTF-8."""
COLUMNS = (
    "video_name",
    "verdict",
    "reason",
    "fake_probability",
    "video_fake_probability",
    "audio_fake_probability",
    "threshold",
    "track",
    "num_segments",
    "num_windows",
    "seconds_spent",
    "checkpoint_sha256",
)


def predict_folder(
    folder: Path,
    detector: Detector,
    output: Path,
    *,
    format: Format = "avff",
    batch_size: int = 8,
    num_workers: int = 0,
    timeout_seconds: float = PART_TIMEOUT_SECONDS,
    progress: bool = True,
) -> list[dict[str, str]]:
    """Predicts every media file below a folder and returns all rows, those of an earlier call included.

    Args:
        output: the CSV. Rows are appended as they come, and sorted by name at the end; a file that has a row is not read
            again.
        format: `open-avff` writes `video_name,y_pred` (fake probability, empty when undecided) to `output` at the end,
            and the full table to `<output stem>.full.csv` meanwhile.
        batch_size, num_workers, timeout_seconds: as for `score_files`.

    Raises:
        MediaError: there is no such folder, or no media file in it.
        EvaluationError: the CSV was written by another checkpoint or with other columns.
    """
    names = _media_names(folder)
    table = output if format == "avff" else output.with_suffix(".full.csv")
    if format == "open-avff":
        _check_open_avff(output)
    rows = _continue_table(table, detector.checkpoint_sha256)
    done = {row["video_name"] for row in rows}
    remaining = [folder / name for name in names if name not in done]
    there = len(names) - len(remaining)
    predictions = predict_files(
        sorted(remaining, key=_num_bytes, reverse=True),  # one core reads a file: a long one should not be the last
        detector,
        batch_size=batch_size,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
    )
    shown = progress_bar(
        predictions, total=len(names), initial=there, unit="file", description="predict", shown=progress
    )
    with table.open("a", newline="", encoding="utf-8", errors=_AS_THEY_ARE) as file, contextlib.closing(predictions):
        for prediction, seconds in shown:
            row = make_table_row(prediction.path.relative_to(folder).as_posix(), prediction, seconds)
            file.write(_table_line(row))
            file.flush()
            rows.append(row)
    rows.sort(key=lambda row: row["video_name"])
    write_durably(table, "".join([_csv_line(COLUMNS), *map(_table_line, rows)]).encode(errors=_AS_THEY_ARE))
    if format == "open-avff":
        write_durably(output, _open_avff(rows).encode(errors=_AS_THEY_ARE))
    return rows


def make_table_row(name: str, prediction: Prediction, seconds: float) -> dict[str, str]:
    """Returns one row as text; numbers are empty when the file is undecided, or the detector has no such head."""
    score = prediction.score
    values: dict[str, object] = {
        "video_name": name,
        "verdict": prediction.verdict,
        "reason": prediction.reason,
        "threshold": f"{prediction.threshold:.6f}",
        "num_segments": len(prediction.segments),
        "num_windows": sum(len(segment.windows) for segment in prediction.segments),
        "seconds_spent": f"{seconds:.2f}",
        "checkpoint_sha256": prediction.checkpoint_sha256,
    }
    if score is not None:
        heads = ("fake_probability", "video_fake_probability", "audio_fake_probability")
        known = [(head, logit) for head, logit in zip(heads, score.logits, strict=True) if logit is not None]
        values |= {head: f"{probability(logit):.6f}" for head, logit in known}
        values["track"] = name_track(score.track)
    return {column: " ".join(str(values.get(column, "")).split()) for column in COLUMNS}


def _media_names(folder: Path) -> list[str]:
    """Returns the media files of a folder and its subfolders as POSIX paths below it, sorted."""
    if not folder.is_dir():
        raise MediaError(f"{folder}: no such file or folder", reason="MISSING")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    if not names:
        raise MediaError(
            f"{folder}: no media file in it; known endings are {' '.join(sorted(VIDEO_SUFFIXES))}", reason="MISSING"
        )
    return names


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # gone since the folder was listed: its row will say so
        return 0


def _check_open_avff(path: Path) -> None:
    """Refuses to replace a file that is not an earlier list of the same kind."""
    header = path.read_text("utf-8", _AS_THEY_ARE).split("\n", 1)[0] if path.is_file() else OPEN_AVFF_HEADER
    if header != OPEN_AVFF_HEADER:
        raise EvaluationError(f"{path}: its header is {header!r}, not {OPEN_AVFF_HEADER!r}; give another --output")


def _continue_table(path: Path, checkpoint_sha256: str) -> list[dict[str, str]]:
    """Returns the rows that are there, after removing a line that an interruption tore."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        write_durably(path, _csv_line(COLUMNS).encode())
        return []
    rows = list(csv.DictReader(io.StringIO(whole.decode("utf-8", _AS_THEY_ARE), newline="")))
    header = whole.split(b"\n", 1)[0].decode("utf-8", _AS_THEY_ARE)
    if header != ",".join(COLUMNS):
        raise EvaluationError(
            f"{path}: its header is {header!r}, not that of a table of predictions; give another --output"
        )
    other = next((row for row in rows if row["checkpoint_sha256"] != checkpoint_sha256), None)
    if other:
        raise EvaluationError(
            f"{path}: was written by checkpoint {other['checkpoint_sha256'][:12]}, this one is {checkpoint_sha256[:12]}; "
            "give another --output"
        )
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return rows


def _open_avff(rows: Sequence[dict[str, str]]) -> str:
    lines = [_csv_line((row["video_name"], row["fake_probability"])) for row in rows]
    return OPEN_AVFF_HEADER + "\n" + "".join(lines)


def _table_line(row: dict[str, str]) -> str:
    return _csv_line(row[column] for column in COLUMNS)


def _csv_line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
