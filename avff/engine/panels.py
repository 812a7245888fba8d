"""Reconstruction panels: what the model saw, what it did not, and what it filled in."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from avff.files import write_durably

NUM_CLIPS = 2
MAX_FRAMES = 8
GREY = 0.55
CAPTION = "filled in: the predicted pattern of each hidden patch, with the true patch's mean and contrast"


def draw_panel(reconstruction: Any, keys: tuple[str, ...], path: Path, *, title: str) -> None:
    """Draws every clip of a `Reconstruction` into one PNG.

    Three picture rows per clip (original; what the model saw, hidden slices grey; hidden slices filled in), then
    the spectrogram likewise. The model predicts patches less their mean and over their contrast (as it is trained), so
    both are taken from the original, which the caption says.
    """
    # Imported here and not above: half a second of every rank's start, for what one rank draws now and then.
    from matplotlib.figure import Figure

    clips = len(keys)
    figure = Figure(figsize=(11, 7.6 * clips), layout="constrained")
    figure.suptitle(f"{title}\n{CAPTION}", fontsize="medium")
    for clip, part in enumerate(figure.subfigures(clips, 1, squeeze=False).flat):
        part.suptitle(keys[clip], fontsize="small")
        above, below = part.subfigures(2, 1, height_ratios=[1.15, 1])
        _draw_frames(above, reconstruction, clip)
        _draw_spectrograms(below, reconstruction, clip)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    figure.savefig(image, dpi=90)
    write_durably(path, image.getvalue())


def _draw_frames(figure: Any, reconstruction: Any, clip: int) -> None:
    visible_T = reconstruction.video_visible_BT[clip].cpu().numpy()
    step = max(1, len(visible_T) // MAX_FRAMES)
    shown = range(0, len(visible_T), step)
    true_THWC = _pictures(reconstruction.video_BTCHW[clip])
    seen_THWC = np.where(visible_T[:, None, None, None], true_THWC, GREY)
    rows = {"frames": true_THWC, "seen": seen_THWC, "filled in": _pictures(reconstruction.video_filled_BTCHW[clip])}
    grid = figure.subplots(len(rows), len(shown), squeeze=False)
    for axes_row, (name, pictures_THWC) in zip(grid, rows.items(), strict=True):
        for axes, frame in zip(axes_row, shown, strict=True):
            axes.imshow(pictures_THWC[frame])
            axes.set(xticks=[], yticks=[])
            if name == "frames":
                axes.set_title(f"{frame}" + ("" if visible_T[frame] else " hidden"), fontsize="x-small")
        axes_row[0].set_ylabel(name)


def _draw_spectrograms(figure: Any, reconstruction: Any, clip: int) -> None:
    visible_M = reconstruction.mel_visible_BM[clip].cpu().numpy()
    true_MF = reconstruction.mel_BMF[clip].float().cpu().numpy()
    rows = {
        "log-mel": true_MF,
        "seen": np.where(visible_M[:, None], true_MF, np.nan),
        "filled in": reconstruction.mel_filled_BMF[clip].float().cpu().numpy(),
    }
    low, high = np.percentile(true_MF, [1, 99.5])
    grid = list(figure.subplots(len(rows), 1, sharex=True))
    for axes, (name, mel_MF) in zip(grid, rows.items(), strict=True):
        axes.set_facecolor(str(GREY))
        axes.imshow(mel_MF.T, origin="lower", aspect="auto", vmin=low, vmax=high, interpolation="nearest", cmap="magma")
        axes.set_ylabel(f"{name}\nmel bin")
        for start in np.flatnonzero(np.diff(visible_M.astype(int))) + 0.5:
            axes.axvline(start, color="white", linewidth=0.6)
    grid[-1].set_xlabel("spectrogram frame")


def _pictures(video_TCHW: Tensor) -> np.ndarray:
    return video_TCHW.float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
