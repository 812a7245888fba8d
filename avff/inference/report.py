"""A prediction in words for people and in plain values for machines."""

from typing import Any

from avff.evaluation.aggregate import WINDOW_AGGREGATION, ClipScore, Logits, WindowScore, known_probability, probability
from avff.inference.predict import Prediction, Segment
from avff.schema import Track

REASONS = {
    "NO_FACE": "no face was found",
    "NO_AUDIO": "there is no sound",
    "TOO_SHORT": "picture and sound do not last one window",
}
SEGMENT_AGGREGATION = "max_over_segments"
_BAR_WIDTH = 20


def name_track(track: int) -> str:
    return "frame" if track < 0 else f"face{track}"


def explain(reason: str) -> str:
    """Returns the reason of an undecided file with its codes in words."""
    return ", ".join(f"{code} ({REASONS[code]})" if code in REASONS else code for code in reason.split(", "))


def as_text(prediction: Prediction) -> str:
    """Returns the verdict and the timeline as lines for a terminal."""
    return "\n".join([_verdict(prediction), *_undecided(prediction), *_tracks(prediction), *_timeline(prediction)])


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Returns everything known about the verdict as plain values; times are seconds of the file."""
    score = prediction.score
    return {
        "path": str(prediction.path),
        "run": prediction.run,
        "checkpoint_sha256": prediction.checkpoint_sha256,
        "verdict": prediction.verdict,
        "reason": prediction.reason,
        "fake_probability": prediction.fake_probability,
        "fake_logit": score.logits.overall if score else None,
        "threshold": prediction.threshold,
        "threshold_is_default": prediction.threshold_is_default,
        "window_aggregation": WINDOW_AGGREGATION,
        "segment_aggregation": SEGMENT_AGGREGATION,
        "decisive_key": prediction.decisive.key if prediction.decisive else None,
        "decisive_track": score.track if score else None,
        "segments": [_segment(segment) for segment in prediction.segments],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "key": segment.key,
        "start_seconds": segment.start_seconds,
        "stop_seconds": segment.stop_seconds,
        "status": segment.status,
        **(_heads(segment.score.logits) if segment.score else {}),
        "tracks": _track_scores(segment.score),
        "faces": [{"track": track.id, "box": _mean_box(track)} for track in segment.tracks],
        "windows": [_window(window, segment.start_seconds, segment.window_seconds) for window in segment.windows],
    }


def _track_scores(score: ClipScore | None) -> list[dict[str, Any]]:
    tracks = score.tracks if score else ()
    return [{"track": t.track, "num_windows": t.num_windows, **_heads(t.logits)} for t in tracks]


def _mean_box(track: Track) -> list[float]:
    """Returns x0, y0, x1, y1 in pixels of the file, the mean over the segment's pictures."""
    return [round(sum(corners) / len(corners), 1) for corners in zip(*track.boxes, strict=True)]


def _window(window: WindowScore, offset_seconds: float, window_seconds: float) -> dict[str, Any]:
    start = offset_seconds + window.start_seconds
    span = {"start_seconds": start, "stop_seconds": start + window_seconds}
    return {"track": window.track, **span, **_heads(window.logits)}


def _heads(logits: Logits) -> dict[str, float | None]:
    return {
        "fake_logit": logits.overall,
        "fake_probability": probability(logits.overall),
        "video_fake_probability": known_probability(logits.video),
        "audio_fake_probability": known_probability(logits.audio),
    }


# ------------------------------------------------------------------------------------------- text


def _verdict(prediction: Prediction) -> str:
    if prediction.score is None:
        return f"{prediction.path}: UNDECIDED: {explain(prediction.reason)}"
    logits = prediction.score.logits
    source = "default, the checkpoint holds none" if prediction.threshold_is_default else "chosen on validation"
    return (
        f"{prediction.path}: {prediction.verdict}  fake probability {probability(logits.overall):.3f} "
        f"(threshold {prediction.threshold:.3f}, {source})\n{_modality_heads(logits)}"
    )


def _modality_heads(logits: Logits) -> str:
    heads = [
        f"  {name} head {probability(logit):.3f}"
        for name, logit in (("video", logits.video), ("audio", logits.audio))
        if logit is not None
    ]
    return "".join(heads) or "  one score for the file: this detector has no heads for picture and sound"


def _undecided(prediction: Prediction) -> list[str]:
    if prediction.score is None:
        return []
    return [
        f"  {segment.start_seconds:.1f}-{segment.stop_seconds:.1f} s undecided: {', '.join(segment.status)}"
        for segment in prediction.segments
        if segment.score is None
    ]


def _tracks(prediction: Prediction) -> list[str]:
    lines = []
    for segment in prediction.segments:
        for track in segment.score.tracks if segment.score else ():
            decides = segment is prediction.decisive and track.track == prediction.score.track  # type: ignore[union-attr]
            lines.append(
                f"  {segment.start_seconds:.1f}-{segment.stop_seconds:.1f} s  {name_track(track.track)}: "
                f"{probability(track.logits.overall):.3f} over {track.num_windows} windows{'  <- decides' if decides else ''}"
            )
    return lines


def _timeline(prediction: Prediction) -> list[str]:
    if prediction.score is None:
        return []
    lines = ["", "  window                track   overall  video  audio"]
    for segment in prediction.segments:
        for window in segment.windows:
            start = segment.start_seconds + window.start_seconds
            overall, video, audio = map(known_probability, window.logits)
            bar = "#" * round(probability(window.logits.overall) * _BAR_WIDTH)
            lines.append(
                f"  {start:7.2f}-{start + segment.window_seconds:7.2f} s  {name_track(window.track):6}  "
                f"{_cell(overall):>7}  {_cell(video):>5}  {_cell(audio):>5}  |{bar:<{_BAR_WIDTH}}|"
            )
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
