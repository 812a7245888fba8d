"""`avff predict`: a file is cut as the detector cuts it and scored window by window, and gets one verdict."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from avff.errors import MediaError
from avff.evaluation.aggregate import DEFAULT_THRESHOLD, ClipScore, WindowScore, aggregate, probability
from avff.inference.detector import Detector
from avff.inference.predict_files import PART_TIMEOUT_SECONDS, ScoredPart, score_files
from avff.schema import Track

Verdict = Literal["REAL", "FAKE", "UNDECIDED"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One stretch of the file and what was found in it.

    Attributes:
        start_seconds, stop_seconds: in the file.
        status: ["OK"], or every reason why the stretch is undecided.
        tracks: faces found; empty where whole frames are read.
        windows: scores, with `start_seconds` counted from the segment's start.
        window_seconds: length of each of them.
        score: None when undecided.
    """

    key: str
    start_seconds: float
    stop_seconds: float
    frames_per_second: float
    status: list[str]
    tracks: list[Track]
    windows: list[WindowScore]
    window_seconds: float
    score: ClipScore | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The verdict on one file.

    Attributes:
        reason: why the file is undecided, else empty.
        segments: in order; none where the file cannot be decoded.
        threshold_is_default: the checkpoint holds none, so DEFAULT_THRESHOLD stands in.
    """

    path: Path
    run: str
    checkpoint_sha256: str
    verdict: Verdict
    reason: str
    threshold: float
    threshold_is_default: bool
    segments: list[Segment]

    @property
    def decisive(self) -> Segment | None:
        """The segment with the highest score: a forgery anywhere makes the file a forgery."""
        scored = [segment for segment in self.segments if segment.score is not None]
        return max(scored, key=lambda segment: segment.score.logits.overall, default=None)  # type: ignore[union-attr]

    @property
    def score(self) -> ClipScore | None:
        return self.decisive.score if self.decisive else None

    @property
    def fake_probability(self) -> float | None:
        return probability(self.score.logits.overall) if self.score else None


class TimedPrediction(NamedTuple):
    """A verdict, and the seconds of work behind it: of one worker for reading, of all cores for scoring."""

    prediction: Prediction
    seconds: float


def predict_file(
    path: Path,
    detector: Detector,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    timeout_seconds: float = PART_TIMEOUT_SECONDS,
) -> Prediction:
    """Returns the verdict on one media file; what cannot be judged is undecided, with the reason.

    Args:
        batch_size, num_workers, timeout_seconds: as for `score_files`.

    Raises:
        MediaError: there is no such file.
        CheckpointError: the checkpoint does not say how to cut clips, or needs the user's own boxes.
    """
    if not path.is_file():
        raise MediaError(f"{path}: no such file", reason="MISSING")
    options = {"batch_size": batch_size, "num_workers": num_workers}
    return next(predict_files([path], detector, timeout_seconds=timeout_seconds, **options)).prediction


def predict_files(
    paths: Sequence[Path],
    detector: Detector,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    timeout_seconds: float = PART_TIMEOUT_SECONDS,
) -> Generator[TimedPrediction, None, None]:
    """Yields the verdict on every file once it is there; a file that is broken, gone or keeps hanging is undecided.

    Args:
        batch_size, num_workers, timeout_seconds: as for `score_files`.

    Raises:
        CheckpointError: the checkpoint does not say how to cut clips, or needs the user's own boxes.
    """
    files = score_files(
        paths, detector, batch_size=batch_size, num_workers=num_workers, timeout_seconds=timeout_seconds
    )
    for file in files:
        segments = [] if file.problem else [_segment(scored) for scored in file.parts]
        yield TimedPrediction(_predict(file.path, detector, segments, file.problem), file.seconds)


def _segment(scored: ScoredPart) -> Segment:
    part, windows = scored
    status = part.status if windows or part.status != ["OK"] else ["TOO_SHORT"]
    return Segment(
        key=part.key,
        start_seconds=part.start_seconds,
        stop_seconds=part.stop_seconds,
        frames_per_second=part.frames_per_second,
        status=status,
        tracks=part.tracks,
        windows=windows,
        window_seconds=part.window_seconds,
        score=aggregate(windows).get(part.key),
    )


def _predict(path: Path, detector: Detector, segments: list[Segment], reason: str) -> Prediction:
    threshold = DEFAULT_THRESHOLD if detector.threshold is None else detector.threshold
    logits = [segment.score.logits.overall for segment in segments if segment.score is not None]
    verdict: Verdict = "UNDECIDED"
    if logits:
        verdict = "FAKE" if probability(max(logits)) >= threshold else "REAL"
    elif not reason:
        reason = ", ".join(sorted({code for segment in segments for code in segment.status})) or "TOO_SHORT"
    return Prediction(
        path=path,
        run=detector.run,
        checkpoint_sha256=detector.checkpoint_sha256,
        verdict=verdict,
        reason=reason,
        threshold=threshold,
        threshold_is_default=detector.threshold is None,
        segments=segments,
    )
