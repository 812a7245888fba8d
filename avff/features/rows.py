"""Which windows of a stored sample make a row of features, and what is known of that row.

One track per sample by default: the known speaker, else the largest face (or the whole frame); a row then stands
for one sample (`clip`) or one window of it (`slice`, `window`). With tracks `all`, every face has rows of its own.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from avff.batch import UNKNOWN, Clip
from avff.data.index import IndexRow
from avff.data.samples import Sample
from avff.data.views import AVView
from avff.data.windows import spans
from avff.errors import EvaluationError
from avff.schema import Label, complete_labels

Level = Literal["clip", "slice", "window"]
Tracks = Literal["main", "all"]
LEVELS: dict[Level, str] = {"clip": "mean over slices and windows", "slice": "as is", "window": "mean over slices"}


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """What one row of features shows. Labels: 0 real, 1 fake, None unknown.

    Attributes:
        shard: file name of the tar that holds the sample.
        track: face track, -1 for the whole frame.
        start_seconds, stop_seconds: half open, in the stored sample; of all its windows together.
        is_fake, video_is_fake, audio_is_fake: of its windows: fake if one is, real if all are, else unknown.
        category: as these labels have it.
    """

    key: str
    dataset: str
    split: str
    source_key: str
    shard: str
    track: int
    start_seconds: float
    stop_seconds: float
    num_windows: int
    is_fake: Label
    video_is_fake: Label
    audio_is_fake: Label
    category: str | None
    methods: list[str]
    group_ids: list[str]

    @property
    def groups(self) -> list[str]:
        """Persons and originals; where none is named, the video that the sample was cut from."""
        return self.group_ids or [f"source {self.dataset}/{self.source_key}"]


class Window(NamedTuple):
    """A clip without its pixels and sound; labels as in `avff.batch.Clip`."""

    track: int
    start_seconds: float
    is_fake: int
    video_is_fake: int
    audio_is_fake: int


def as_window(clip: Clip) -> Window:
    return Window(clip.track, clip.start_seconds, clip.is_fake, clip.video_is_fake, clip.audio_is_fake)


# ------------------------------------------------------------------------------------------- tracks


class MainTrackView(AVView):
    """AVFF's view of the main track alone: the largest of the known speakers, else the largest face."""

    def evaluation_clips(self, sample: Sample) -> list[Clip]:
        """Returns the windows of the main track, among those long enough for one; none where there is none."""
        tracks = [span.track for span in spans(sample.metadata, self.clip) if span.track is not None]
        if not tracks:
            return super().evaluation_clips(sample)
        main = max(tracks, key=lambda track: (track.is_speaker is True, track.area_ratio, -track.id))
        return super().evaluation_clips(sample._replace(metadata=dataclasses.replace(sample.metadata, tracks=[main])))


# ------------------------------------------------------------------------------------------- rows


def row_ranges(windows: Sequence[Window], level: Level) -> list[tuple[int, int]]:
    """Returns the [start, stop) of the windows behind each row: a track's (`clip`), or one window."""
    if level != "clip":
        return [(index, index + 1) for index in range(len(windows))]
    starts = [index for index in range(len(windows)) if not index or windows[index].track != windows[index - 1].track]
    return list(pairwise([*starts, len(windows)]))


def make_row(sample: IndexRow, windows: Sequence[Window], clip_seconds: float) -> FeatureRow:
    """Returns the row of some windows of one track, in order of time."""
    is_fake, video_is_fake, audio_is_fake, category = complete_labels(
        _joined([window.is_fake for window in windows]),
        _joined([window.video_is_fake for window in windows]),
        _joined([window.audio_is_fake for window in windows]),
    )
    return FeatureRow(
        key=sample.key,
        dataset=sample.dataset,
        split=sample.split,
        source_key=sample.source_key,
        shard=sample.shard,
        track=windows[0].track,
        start_seconds=windows[0].start_seconds,
        stop_seconds=windows[-1].start_seconds + clip_seconds,
        num_windows=len(windows),
        is_fake=is_fake,
        video_is_fake=video_is_fake,
        audio_is_fake=audio_is_fake,
        category=category,
        methods=list(sample.methods),
        group_ids=list(sample.group_ids),
    )


def reduce_windows(values_WSD: np.ndarray, level: Level) -> np.ndarray:
    """Returns one row's features, float32: (S, D) of a single window at level `slice`, else (D,)."""
    if level == "slice":
        return values_WSD[0]
    return values_WSD.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)


def _joined(labels: Sequence[int]) -> Label:
    if 1 in labels:
        return 1
    return None if UNKNOWN in labels else 0


# ------------------------------------------------------------------------------------------- index.jsonl


def index_text(rows: Iterable[FeatureRow]) -> str:
    """Returns one JSON object per line, numbered as the arrays' rows are."""
    return "".join(
        json.dumps({"row": number, **dataclasses.asdict(row)}, ensure_ascii=False) + "\n"
        for number, row in enumerate(rows)
    )


def read_index(path: Path) -> list[FeatureRow]:
    """Reads index.jsonl; raises EvaluationError where it is missing or of another form."""
    try:
        records: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        numbers = [record.pop("row") for record in records]
        rows = [FeatureRow(**record) for record in records]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EvaluationError(f"{path}: not the table of an extraction: {error}; extract the features again") from error
    if numbers != list(range(len(rows))):
        raise EvaluationError(
            f"{path}: its rows are not numbered from 0 to {len(rows) - 1}; extract the features again"
        )
    return rows
