"""`avff evaluate`: a detector and shard directories in; rows, summary and a page out."""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avff.data.index import IndexRow
from avff.data.selection import StoredSample, check_unshared_keys
from avff.data.shards import ShardDirectory, open_directory
from avff.errors import EvaluationError
from avff.evaluation.aggregate import WINDOW_AGGREGATION, ClipScore, aggregate, probability
from avff.evaluation.compare import auc_difference
from avff.evaluation.page import Result, write_page
from avff.evaluation.rows import Row, Table, read_rows, write_csv, write_jsonl
from avff.evaluation.summary import summarize
from avff.files import write_durably
from avff.inference.detector import Detector
from avff.inference.loading import LoadedSample, load_samples
from avff.inference.provenance import describe_provenance, leak_notes, read_training
from avff.progress import progress_bar

log = logging.getLogger(__name__)

PAGE = "page.html"
SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found and where it lies."""

    summary: dict[str, Any]
    rows: list[Row]
    output: Path

    @property
    def page(self) -> Path:
        return self.output / PAGE


def evaluate(
    detector: Detector,
    shards: Sequence[Path],
    output: Path,
    *,
    split: str = "test",
    batch_size: int = 8,
    num_workers: int = 2,
    compare: Sequence[Path] = (),
    allow_other_build: bool = False,
    allow_missing: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Scores every clip of a split once and writes rows.jsonl, rows.csv, summary.json and page.html.

    Args:
        shards: directories that tools/make_shards.py wrote.
        compare: tables (rows.jsonl) of other detectors on the same clips, drawn beside this one.
        allow_other_build: score shards that were built otherwise than the training shards; the page says so.
        allow_missing: give metrics although clips could not be read; the page says so.

    Raises:
        ShardError: a directory is missing or incomplete, or two of them share a key.
        EvaluationError: shards of another build, no clip of the split, or clips that could not be read;
            in the last case the rows are written all the same.
    """
    directories = [open_directory(path) for path in shards]
    samples = select_split(directories, split)
    notes = detector.check_shards(directories, samples, allow_other_build=allow_other_build)
    others = _read_others(compare, detector)
    table = score_samples(detector, samples, batch_size=batch_size, num_workers=num_workers, progress=progress)
    _write_rows(output, table.rows)
    summary = summarize(table, allow_missing=allow_missing)
    summary["hazards"] += [*notes, *leak_notes(detector, table.rows)]
    summary["differences"] = {name: auc_difference(table.rows, rows) for name, rows in others.items()}
    summary["provenance"] = describe_provenance(detector, directories)
    write_durably(output / SUMMARY, (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    main = Result(summary, table.rows, summary["provenance"], read_training(detector))
    beside = [Result(summarize(Table(rows=rows, expected=len(rows))), rows, {}) for rows in others.values()]
    write_page(output / PAGE, [main, *beside], title=f"{detector.run}: {split} split")
    return Evaluation(summary=summary, rows=table.rows, output=output)


def select_split(directories: Sequence[ShardDirectory], split: str) -> list[StoredSample]:
    """Returns every sample of a split, undecidable ones included.

    Raises:
        EvaluationError: the split is empty.
        ShardError: two directories share a key.
    """
    samples = [StoredSample(d, row) for d in directories for row in d.rows if row.split == split]
    if not samples:
        there = sorted({row.split or "(none)" for d in directories for row in d.rows})
        raise EvaluationError(
            f"no clip of split {split!r} in {', '.join(str(d.path) for d in directories)}; splits there: {', '.join(there)}"
        )
    check_unshared_keys(samples)
    return samples


def score_samples(
    detector: Detector, samples: Sequence[StoredSample], *, batch_size: int, num_workers: int, progress: bool = False
) -> Table:
    """Returns one row per sample that could be read, in order, and the reasons for the rest."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    timeout_seconds = detector.decode_timeout_seconds
    loaded = load_samples(samples, detector.view, num_workers=num_workers, timeout_seconds=timeout_seconds)
    shown = progress_bar(loaded, total=len(samples), unit="clip", description="score", shown=progress)
    for chunk in _chunks(shown, batch_size):
        start = time.perf_counter()
        scores = aggregate(detector.score((window for one in chunk for window in one.windows), batch_size=batch_size))
        per_window = (time.perf_counter() - start) / max(1, sum(len(one.windows) for one in chunk))
        for one in chunk:
            row = samples[one.position].row
            if one.problem is not None:
                missing[row.key] = one.problem
                log.warning("%s", one.problem)
                continue
            seconds = one.seconds + per_window * len(one.windows)
            rows.append(make_row(detector, row, scores.get(row.key), one.leading_silence_seconds, seconds))
    return Table(rows=rows, expected=len(samples), missing=missing)


def make_row(
    detector: Detector, sample: IndexRow, score: ClipScore | None, silence_seconds: float | None, seconds: float
) -> Row:
    """Returns the row of one sample; without a score it is undecided, for the reasons in its status."""
    described = describe_sample(sample)
    if score is None and described["status"] == ["OK"]:
        described["status"] = ["TOO_SHORT"]  # long enough to be built, too short for this model's window
    return Row(
        run=detector.run,
        detector=detector.name,
        checkpoint_sha256=[detector.checkpoint_sha256],
        window_aggregation=WINDOW_AGGREGATION,
        threshold=detector.threshold,
        leading_silence_seconds=silence_seconds,
        seconds_spent=seconds,
        **described,
        **({} if score is None else _verdict(score, detector.threshold)),
    )


def describe_sample(sample: IndexRow) -> dict[str, Any]:
    """Returns what a result row says about the clip itself, whoever scores it."""
    same = ("dataset", "split", "key", "source_key", "is_fake", "video_is_fake", "audio_is_fake", "category")
    lists = ("group_ids", "status", "methods")
    return {**{n: getattr(sample, n) for n in same}, **{n: list(getattr(sample, n)) for n in lists}}


def _verdict(score: ClipScore, threshold: float | None) -> dict[str, Any]:
    fake_probability = probability(score.logits.overall)
    return {
        "track": score.track,
        "fake_logit": score.logits.overall,
        "fake_probability": fake_probability,
        "predicted": None if threshold is None else int(fake_probability >= threshold),
        "video_fake_logit": score.logits.video,
        "audio_fake_logit": score.logits.audio,
        "num_windows": sum(track.num_windows for track in score.tracks),
    }


def _read_others(paths: Sequence[Path], detector: Detector) -> dict[str, list[Row]]:
    """Returns the tables to compare with, by label; two of one label could not be told apart in a figure."""
    others: dict[str, list[Row]] = {}
    own_label = f"{detector.name} ({detector.run})"
    for path in paths:
        rows = read_rows(path)
        if not rows:
            raise EvaluationError(f"{path}: holds no row to compare with")
        if rows[0].label in {own_label, *others}:
            raise EvaluationError(
                f"{path}: is by {rows[0].label}, which is in the comparison already; compare runs of different names"
            )
        others[rows[0].label] = rows
    return others


def _write_rows(output: Path, rows: list[Row]) -> None:
    """Writes the rows; a summary of earlier rows must not lie beside them."""
    for stale in (SUMMARY, PAGE):
        (output / stale).unlink(missing_ok=True)
    write_jsonl(output / "rows.jsonl", rows)
    write_csv(output / "rows.csv", rows)


def _chunks(loaded: Iterable[LoadedSample], num_windows: int) -> Iterator[list[LoadedSample]]:
    """Yields runs of samples that hold at least so many windows, so that short clips share a batch."""
    chunk: list[LoadedSample] = []
    for one in loaded:
        chunk.append(one)
        if sum(len(sample.windows) for sample in chunk) >= num_windows:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
