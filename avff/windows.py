"""Windows of a clip on stored frames and sound, and the square that is read of a picture: arithmetic only.

    stored frames    |a    |     |     |     |     |     |        frame i shows [i, i + 1) / fps_stored
    clip's frames    |0          |1          |2          |        frame k shows the stored frame nearest to
    clip's sound     [-----------------------------------)        a + k * fps_stored / fps_clip, a tie the later one

A window starts at a stored frame, so frame 0 and the first audio sample belong to the same instant, and it ends
`clip.duration_seconds` later for both. Time 0 is the start of the stored clip.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from avff.config import ClipConfig

RATE_TOLERANCE = 1e-6
"""Frames, or frames per second, that are no difference."""


def last_start(stop_frame: int, sound_seconds: float, stored_rate: float, clip: ClipConfig) -> int:
    """Returns the last stored frame from which picture and sound both last a whole clip; negative if there is none.

    Args:
        stop_frame: at which the picture ends.
        sound_seconds: at which the sound ends.
    """
    latest = min(stop_frame, sound_seconds * stored_rate) - clip.duration_seconds * stored_rate
    return math.floor(latest + RATE_TOLERANCE)


def frame_indices(start_frame: int, stored_rate: float, clip: ClipConfig) -> np.ndarray:
    """Returns the stored frames of a window, int64, `clip.num_frames` of them."""
    steps_T = np.arange(clip.num_frames) * stored_rate / clip.frames_per_second
    return start_frame + np.floor(steps_T + 0.5 + RATE_TOLERANCE).astype(np.int64)


def first_sample(start_seconds: float, clip: ClipConfig) -> int:
    """Returns the audio sample at which a window starts; it has `clip.num_samples` of them."""
    return round(start_seconds * clip.sample_rate_hz)


def cut_sound(sound_N: np.ndarray, start_seconds: float, clip: ClipConfig, offset_samples: int = 0) -> np.ndarray:
    """Returns the window's `clip.num_samples` audio samples; a gap at the very end is silence.

    Args:
        sound_N: the sound from its sample `offset_samples` on.
    """
    start = first_sample(start_seconds, clip) - offset_samples
    window_N = sound_N[start : start + clip.num_samples]
    if len(window_N) == clip.num_samples:
        return window_N
    return np.pad(window_N, (0, clip.num_samples - len(window_N)))


def sliding_starts(starts: range, stored_rate: float, clip: ClipConfig) -> list[int]:
    """Returns evenly spaced starts, the first and the last among them, at most half a clip apart."""
    half_clip = max(1, math.floor(clip.duration_seconds * stored_rate / 2 + RATE_TOLERANCE))
    distance = starts[-1] - starts[0]
    num_steps = math.ceil(distance / half_clip)
    return [starts[0] + distance * i // max(num_steps, 1) for i in range(num_steps + 1)]


def centre_square(video_THWC: np.ndarray, side_pixels: int) -> np.ndarray:
    """Cuts the centre square of every frame; resized (antialiased) only where its side differs."""
    return fit_square(crop_square(video_THWC), side_pixels)


def crop_square(video_xHWC: np.ndarray) -> np.ndarray:
    """Returns the centre square of one or more frames, without a copy."""
    height, width = video_xHWC.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return video_xHWC[..., top : top + side, left : left + side, :]


def fit_square(square_TSSC: np.ndarray, side_pixels: int) -> np.ndarray:
    """Resizes square frames, antialiased, where their side differs."""
    if square_TSSC.shape[1] == side_pixels:
        return square_TSSC
    square_TCSS = torch.from_numpy(np.ascontiguousarray(square_TSSC)).permute(0, 3, 1, 2)
    resized_TCSS = F.interpolate(square_TCSS, size=(side_pixels, side_pixels), mode="bilinear", antialias=True)
    return resized_TCSS.permute(0, 2, 3, 1).numpy()
