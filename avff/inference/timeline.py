"""A prediction as a picture: frames with faces, the score of every window by track, and the sound below."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from avff.evaluation.aggregate import probability
from avff.evaluation.plots import DETECTOR_COLOURS, STYLE
from avff.inference.predict import Prediction, Segment
from avff.inference.report import explain, name_track
from avff.media.audio import SAMPLE_RATE_HZ, AudioLine
from avff.media.reader import probe, read_frames, upright_rgb
from avff.schema import Track

FRAME_HEIGHT = 180
STRIP_ASPECT = 7.2
"""Width of the strip of frames over its height; narrow pictures leave room for more of them."""
HEAD_STYLES = {"overall": ("#222222", "-", 2.0), "video": ("#0072B2", "--", 1.2), "audio": ("#D55E00", ":", 1.5)}
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.2}
VERDICT_COLOURS = {"FAKE": "#B3261E", "REAL": "#1E7B34", "UNDECIDED": "#666666"}


def draw_timeline(prediction: Prediction) -> bytes:
    """Returns a PNG; a prediction without segments (an undecodable file) shows its reason alone."""
    tracks = sorted({window.track for segment in prediction.segments for window in segment.windows})
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        rows = [1.5, *([1.5] * max(1, len(tracks))), 1.1] if prediction.segments else [0.5]
        figure = Figure(figsize=(11, 0.7 + sum(rows)), layout="constrained", dpi=110)
        panels = np.atleast_1d(figure.subplots(len(rows), 1, height_ratios=rows))
        figure.suptitle(
            _title(prediction), color=VERDICT_COLOURS[prediction.verdict], fontweight="bold", x=0.01, ha="left"
        )
        if prediction.segments:
            _draw_segments(prediction, tracks, panels)
        else:
            panels[0].text(0, 0.5, "\n".join(textwrap.wrap(prediction.reason, 130)), va="center")
            panels[0].axis("off")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def _title(prediction: Prediction) -> str:
    if prediction.fake_probability is None:
        return f"{prediction.path.name}: UNDECIDED"
    return (
        f"{prediction.path.name}: {prediction.verdict}, fake probability {prediction.fake_probability:.3f} "
        f"(threshold {prediction.threshold:.3f})"
    )


def _draw_segments(prediction: Prediction, tracks: Sequence[int], panels: np.ndarray) -> None:
    stop_seconds = max(segment.stop_seconds for segment in prediction.segments)
    _draw_frames(panels[0], prediction, stop_seconds)
    for axes, track in zip(panels[1:-1], tracks, strict=False):
        _draw_scores(axes, prediction, track)
    if not tracks:
        panels[1].text(
            0.5, 0.5, f"no score: {explain(prediction.reason)}", ha="center", va="center", transform=panels[1].transAxes
        )
        panels[1].set_yticks([])
    _draw_sound(panels[-1], prediction.path, stop_seconds)
    for axes in panels[1:]:
        axes.set_xlim(0, stop_seconds)
    for axes in panels[1:-1]:
        axes.tick_params(labelbottom=False)


def _draw_scores(axes: Axes, prediction: Prediction, track: int) -> None:
    """One track's windows: a bar over the time that a window saw, a mark at its middle."""
    for segment in prediction.segments:
        windows = [window for window in segment.windows if window.track == track]
        starts = np.array([segment.start_seconds + window.start_seconds for window in windows])
        for head, (colour, line, width) in HEAD_STYLES.items():
            logits = [getattr(window.logits, head) for window in windows]
            if None in logits:
                continue
            values = [probability(logit) for logit in logits]
            first = head if segment is _first_with(prediction, track) else None
            axes.plot(
                starts + segment.window_seconds / 2,
                values,
                line,
                color=colour,
                lw=width,
                marker="o",
                ms=3,
                label=first,
            )
            if head == "overall" and windows:
                axes.hlines(values, starts, starts + segment.window_seconds, color=colour, alpha=0.25, lw=3)
    axes.axhline(prediction.threshold, color="#999999", lw=0.9, ls=(0, (4, 3)))
    axes.set(ylim=(-0.04, 1.04), yticks=[0, 0.5, 1])
    axes.set_title(f"{name_track(track)}: fake probability per window (dashed: threshold)", color=_track_colour(track))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _track_colour(track: int) -> str:
    return "#222222" if track < 0 else DETECTOR_COLOURS[track % len(DETECTOR_COLOURS)]


def _first_with(prediction: Prediction, track: int) -> Segment:
    return next(s for s in prediction.segments if any(window.track == track for window in s.windows))


# ------------------------------------------------------------------------------------------- frames, sound


def _draw_frames(axes: Axes, prediction: Prediction, stop_seconds: float) -> None:
    """A strip of evenly spaced source frames with the boxes of the tracks that are there."""
    info = probe(prediction.path)
    scale = FRAME_HEIGHT / info.height
    width = max(2, round(info.width * scale))
    count = max(1, round(STRIP_ASPECT * FRAME_HEIGHT / width))
    times = [(i + 0.5) * stop_seconds / count for i in range(count)]
    pictures = [upright_rgb(picture, (width, FRAME_HEIGHT)) for picture in _pictures_at(prediction.path, times)]
    axes.imshow(np.hstack(pictures), aspect="equal")
    axes.axis("off")
    for i, seconds in enumerate(times[: len(pictures)]):
        axes.text(i * width + 5, FRAME_HEIGHT - 8, f"{seconds:.1f} s", fontsize=7, bbox=LABEL_BOX)
        for track, box in _boxes_at(prediction.segments, seconds):
            x0, y0, x1, y1 = (value * scale for value in box)
            colour = _track_colour(track.id)
            axes.add_patch(Rectangle((i * width + x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, lw=1.5))
            axes.text(i * width + x0, y0 - 4, name_track(track.id), color=colour, fontsize=6.5, bbox=LABEL_BOX)


def _pictures_at(path: Path, times: Sequence[float]) -> Iterator:
    """Yields the picture that a player shows at each time; ends early if the file does."""
    wanted = iter([Fraction(seconds) for seconds in times])
    seconds = next(wanted)
    for frame in read_frames(path):
        while frame.start_seconds <= seconds < frame.stop_seconds:
            yield frame.picture
            following = next(wanted, None)
            if following is None:
                return
            seconds = following


def _boxes_at(segments: Sequence[Segment], seconds: float) -> Iterator[tuple[Track, list[float]]]:
    for segment in segments:
        index = int((seconds - segment.start_seconds) * segment.frames_per_second)
        for track in segment.tracks:
            if seconds >= segment.start_seconds and 0 <= index - track.first_frame < track.num_frames:
                yield track, track.boxes[index - track.first_frame]


def _draw_sound(axes: Axes, path: Path, stop_seconds: float) -> None:
    sound_N = AudioLine(path, probe(path)).read(0, round(stop_seconds * SAMPLE_RATE_HZ))
    axes.set(title="sound", xlabel="seconds", ylabel="kHz")
    if sound_N is None:
        axes.text(0.5, 0.5, "no sound", ha="center", va="center", transform=axes.transAxes)
        axes.set(yticks=[], ylabel="")
        return
    windows_MN = np.lib.stride_tricks.sliding_window_view(np.pad(sound_N / 32768, (256, 256)), 512)[::256]
    decibels_MF = 10 * np.log10(np.abs(np.fft.rfft(windows_MN * np.hanning(512))) ** 2 + 1e-10)
    extent = (0.0, len(sound_N) / SAMPLE_RATE_HZ, 0.0, SAMPLE_RATE_HZ / 2000)
    top = float(decibels_MF.max())
    axes.imshow(decibels_MF.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - 70, vmax=top)
