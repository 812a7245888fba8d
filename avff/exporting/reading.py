"""A raw media file to the frames and sound of its windows, without shards: what building and AVView do, in one pass.

Only the recompression between the two is left out; times, squares and windows are the same.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avff.build_config import BuildConfig
from avff.config import ClipConfig
from avff.errors import MediaError
from avff.media.audio import SAMPLE_RATE_HZ, AudioLine
from avff.media.crops import FacePath, square_region
from avff.media.reader import MediaInfo, ShownFrame, probe, read_frames, upright_rgb
from avff.media.sampling import StoredFrame, exact_rate, sample_frames, split_segments
from avff.windows import centre_square, cut_sound, frame_indices, last_start, sliding_starts

_SHORTEST_TOLERANCE_SECONDS = 1e-6


class Window(NamedTuple):
    """One clip as the model reads it, before preprocessing.

    Attributes:
        segment: stretch of the file that it lies in; long files are judged in stretches, as they are built.
        start_seconds: in the file.
        video_THWC: uint8, squares of `clip.load_size`.
        waveform_N: float32 in [-1, 1).
    """

    segment: int
    start_seconds: float
    video_THWC: np.ndarray
    waveform_N: np.ndarray


class Skipped(NamedTuple):
    """A stretch of the file without a window.

    Attributes:
        reason: NO_AUDIO or TOO_SHORT.
        words: the same for people.
    """

    start_seconds: float
    stop_seconds: float
    reason: str
    words: str

    def __str__(self) -> str:
        return f"{self.start_seconds:.2f} to {self.stop_seconds:.2f} s: {self.words}"


def read_windows(
    path: Path, clip: ClipConfig, build: BuildConfig, boxes_P4: np.ndarray | None = None
) -> Iterator[Window | Skipped]:
    """Yields all windows of a file in order; holds one segment in memory.

    Args:
        boxes_P4: x0, y0, x1, y1 of the face in upright pixels: one row for the whole file, or one per picture of it.
            None takes the centre square, or the whole frame where the model reads that.

    Raises:
        MediaError: no such file, it cannot be decoded, has no picture or no sound, or the boxes do not fit it.
    """
    if not path.is_file():
        raise MediaError(f"{path}: no such file", reason="MISSING")
    info = probe(path)
    if info.audio_start_seconds is None:
        raise MediaError(f"{path}: holds no sound, and the model needs picture and sound", reason="NO_AUDIO")
    squares = _Squares(path, info, clip, build, boxes_P4)
    rate = exact_rate(build.video.frames_per_second)
    per_segment = max(1, round(build.segment_seconds * rate))
    sound = AudioLine(path, info)
    for segment, frames in split_segments(sample_frames(squares.watch(read_frames(path)), rate), per_segment):
        first = next(frames)
        video_THWC = np.stack([squares.cut(frame) for frame in itertools.chain([first], frames)])
        start, stop = first.number / rate, (first.number + len(video_THWC)) / rate
        first_sample = round(start * SAMPLE_RATE_HZ)
        sound_N = sound.read(first_sample, first_sample + round((stop - start) * SAMPLE_RATE_HZ))
        if sound_N is None:
            yield Skipped(float(start), float(stop), "NO_AUDIO", "no sound there")
            continue
        yield from _cut(segment, start, video_THWC, sound_N, clip, build)
    squares.check_all_used()


def _cut(
    segment: int, start: Fraction, video_THWC: np.ndarray, sound_N: np.ndarray, clip: ClipConfig, build: BuildConfig
) -> Iterator[Window | Skipped]:
    """Slides over one segment as AVView does over a track that lasts all of it."""
    rate = build.video.frames_per_second
    seconds = len(video_THWC) / rate
    # The sound reaches as far as the picture: what was missing at its end is silence already.
    stop = last_start(len(video_THWC), math.inf, rate, clip) + 1
    if stop <= 0 or seconds < build.min_seconds - _SHORTEST_TOLERANCE_SECONDS:
        needed = max(build.min_seconds, clip.duration_seconds)
        words = f"shorter than the {needed:g} s that are needed"
        yield Skipped(float(start), float(start) + seconds, "TOO_SHORT", words)
        return
    waveform_N = sound_N.astype(np.float32) / 32768.0
    for first in sliding_starts(range(stop), rate, clip):
        window_THWC = video_THWC[frame_indices(first, rate, clip)]
        yield Window(segment, float(start) + first / rate, window_THWC, cut_sound(waveform_N, first / rate, clip))


class _Squares:
    """Cuts the square of each stored frame that the model was trained on."""

    def __init__(self, path: Path, info: MediaInfo, clip: ClipConfig, build: BuildConfig, boxes_P4: np.ndarray | None):
        self.path, self.info, self.clip, self.build = path, info, clip, build
        self._picture_of: dict[Fraction, int] = {}
        self._faces = None if boxes_P4 is None else _face_path(boxes_P4, path)
        if self._faces and build.mode == "frame":
            raise MediaError(f"{path}: a box was given, but the model reads whole frames; leave it out", reason="BOXES")

    def watch(self, frames: Iterable[ShownFrame]) -> Iterator[ShownFrame]:
        """Passes pictures on and counts them, so that a stored frame finds its box."""
        for frame in frames:
            self._picture_of[frame.start_seconds] = len(self._picture_of)
            yield frame

    def cut(self, frame: StoredFrame) -> np.ndarray:
        """Returns uint8 (load_size, load_size, 3)."""
        video = self.build.video
        if self.build.mode == "frame":
            stored_HWC = upright_rgb(frame.picture, self.info.scaled_size(video.frame_short_side_pixels))
        else:
            centre, half_side = self._square_of(frame)
            picture_HWC = upright_rgb(frame.picture, (self.info.width, self.info.height))
            stored_HWC = bicubic_square(picture_HWC, centre, half_side, video.side_pixels)
        return centre_square(stored_HWC[None], self.clip.load_size)[0]

    def check_all_used(self) -> None:
        """Raises MediaError where there are boxes left."""
        if self._faces and self._faces.num_frames not in (1, len(self._picture_of)):
            self._refuse_count(f"{len(self._picture_of)}")

    def _square_of(self, frame: StoredFrame) -> tuple[np.ndarray, float]:
        faces = self._faces
        if faces is None:
            size = np.array([self.info.width, self.info.height])
            return size / 2, float(size.min()) / 2
        picture = 0 if faces.num_frames == 1 else self._picture_of[frame.source_seconds]
        if picture >= faces.num_frames:
            self._refuse_count(f"at least {picture + 1}")
        return faces.crop_centres[picture], faces.crop_half_sides(self.build.video.crop_factor)[picture]

    def _refuse_count(self, num_pictures: str) -> None:
        assert self._faces
        raise MediaError(
            f"{self.path}: {self._faces.num_frames} boxes for {num_pictures} pictures; give one box, or one per picture",
            reason="BOXES",
        )


def _face_path(boxes_P4: np.ndarray, path: Path) -> FacePath:
    if boxes_P4.ndim != 2 or boxes_P4.shape[1] != 4:
        raise MediaError(
            f"{path}: boxes of shape {boxes_P4.shape}; give (x0, y0, x1, y1), or one such row per picture",
            reason="BOXES",
        )
    is_box_P = np.isfinite(boxes_P4).all(axis=1) & (boxes_P4[:, 0] < boxes_P4[:, 2]) & (boxes_P4[:, 1] < boxes_P4[:, 3])
    if not is_box_P.all():
        row = int(np.flatnonzero(~is_box_P)[0])
        raise MediaError(
            f"{path}: box {row} is {boxes_P4[row].tolist()}; it has to be x0 < x1, y0 < y1 in pixels", reason="BOXES"
        )
    ones_P = np.ones(len(boxes_P4))
    return FacePath(first_frame=0, boxes_T4=boxes_P4, scores_T=ones_P, detected_T=ones_P > 0)


# ------------------------------------------------------------------------------------------- resampling


def bicubic_square(picture_HWC: np.ndarray, centre: np.ndarray, half_side: float, side_pixels: int) -> np.ndarray:
    """Does what `avff.media.crops.square_crop` does without Pillow; at most a grey level differs, on a pixel in 1000.

    Returns:
        uint8 (side_pixels, side_pixels, 3).
    """
    region_HWC, (x0, y0, x1, y1) = square_region(picture_HWC, centre, half_side)
    height, width = region_HWC.shape[:2]
    columns_wW = bicubic_weights(x0, x1, width, side_pixels)
    rows_hH = bicubic_weights(y0, y1, height, side_pixels)
    # Columns first, rounded in between, as Pillow does.
    x = torch.from_numpy(region_HWC).float().permute(1, 0, 2).reshape(width, -1)
    x = (columns_wW @ x).round().clamp(0, 255).view(side_pixels, height, 3)
    x = (rows_hH @ x.permute(1, 0, 2).reshape(height, -1)).round().clamp(0, 255)
    return x.view(side_pixels, side_pixels, 3).to(torch.uint8).numpy()


def bicubic_weights(start: float, stop: float, stored: int, size: int) -> Tensor:
    """Returns (size, stored) float32 weights that read `size` samples out of [start, stop), antialiased.

    Keys' cubic with a = -0.5, widened by the scale where it shrinks; the kernel ends at the stored samples.
    """
    scale = (stop - start) / size
    centre_h1 = start + (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    distance_hH = ((torch.arange(stored) + 0.5 - centre_h1) / max(scale, 1.0)).abs()
    near = (1.5 * distance_hH - 2.5) * distance_hH**2 + 1
    far = ((-0.5 * distance_hH + 2.5) * distance_hH - 4) * distance_hH + 2
    weights_hH = torch.where(distance_hH < 1, near, torch.where(distance_hH < 2, far, 0.0))
    return (weights_hH / weights_hH.sum(1, keepdim=True)).float()
