"""`avff predict` for one file: cut as the training clips were cut, scored window by window, one verdict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avff.build_config import BuildConfig
from avff.building.samples import build_samples
from avff.building.sources import single_source
from avff.data.shards import Sample
from avff.errors import CheckpointError, MediaError
from avff.evaluation.aggregate import DEFAULT_THRESHOLD, ClipScore, WindowScore, aggregate, probability
from avff.inference.detector import Detector
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
        score: None when undecided.
    """

    key: str
    start_seconds: float
    stop_seconds: float
    frames_per_second: float
    status: list[str]
    tracks: list[Track]
    windows: list[WindowScore]
    score: ClipScore | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The verdict on one file.

    Attributes:
        reason: why the file is undecided, else empty.
        segments: in order; none where the file cannot be decoded.
        window_seconds: length of every window.
        threshold_is_default: the checkpoint holds none, so DEFAULT_THRESHOLD stands in.
    """

    path: Path
    run: str
    checkpoint_sha256: str
    verdict: Verdict
    reason: str
    threshold: float
    threshold_is_default: bool
    window_seconds: float
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


def predict_file(path: Path, detector: Detector, *, batch_size: int = 8) -> Prediction:
    """Returns the verdict on one media file; what cannot be judged is undecided, with the reason.

    Raises:
        MediaError: there is no such file.
        CheckpointError: the checkpoint does not say how to cut clips, or needs the user's own boxes.
    """
    build = detector.require_build()
    _require_detectable(build, detector)
    if not path.is_file():
        raise MediaError(f"{path}: no such file", reason="MISSING")
    try:
        samples = build_samples(single_source(path), build)
    except MediaError as error:
        return _predict(path, detector, [], f"{error.reason}: {error}")
    return _predict(path, detector, [_score_segment(sample, detector, batch_size) for sample in samples], "")


def _score_segment(sample: Sample, detector: Detector, batch_size: int) -> Segment:
    metadata = sample.metadata
    windows = detector.score(detector.view.evaluation_clips(sample), batch_size=batch_size)
    status: list[str] = list(metadata.status)
    if not windows and status == ["OK"]:
        status = ["TOO_SHORT"]
    start_seconds = metadata.video.start_seconds
    return Segment(
        key=metadata.key,
        start_seconds=start_seconds,
        stop_seconds=start_seconds + metadata.video.duration_seconds,
        frames_per_second=metadata.video.fps,
        status=status,
        tracks=metadata.tracks,
        windows=windows,
        score=aggregate(windows).get(metadata.key),
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
        window_seconds=detector.config.clip.duration_seconds,
        segments=segments,
    )


def _require_detectable(build: BuildConfig, detector: Detector) -> None:
    if build.mode == "boxes":
        raise CheckpointError(
            f"{detector.weights_path}: its clips were cut with the user's own boxes (mode boxes), which a single file does "
            "not bring; build shards with tools/make_shards.py --boxes and run avff evaluate on them"
        )
