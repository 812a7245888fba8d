"""What a forger does to one modality, and the faint trace it leaves there.

Wrong sound or a wrong mouth says that a clip lies, not which modality does; the traces say which. They are weak on
purpose: the disagreement of mouth and sound is to be the strong cue.
"""

import numpy as np
import torch
from torch.nn import functional as F

from avff.media.synthetic.drawing import bell, ellipse, step
from avff.media.synthetic.mouth import region_coordinates
from avff.media.synthetic.voice import SAMPLE_RATE_HZ, istft, stft

MIN_SHIFT_SECONDS = 0.35
"""Smallest shift between mouth and sound; shorter ones look like sync."""
MAX_SHIFT_SECONDS = 1.1
_BLEND_RADII = (0.60, 0.44)
"""Half axes of the blended ellipse, in head units: every mouth, true or forged, lies inside."""
_BLEND_CENTRE = (0.0, 0.14)
_TINT = 0.025
"""Size of the colour mismatch of the blended mouth."""
_SEAM = 0.02
"""Brightness of the line along the seam."""


def draw_shift(rng: np.random.Generator) -> float:
    """Draws how many seconds sound and mouth are moved apart, either way."""
    return float(rng.choice((-1, 1)) * rng.uniform(MIN_SHIFT_SECONDS, MAX_SHIFT_SECONDS))


def blend_mouth(
    rng: np.random.Generator, true_THWC: np.ndarray, forged_THWC: np.ndarray, pixels_per_unit: float
) -> np.ndarray:
    """Blends a re-rendered mouth into the true mouth region.

    The trace: the forged mouth comes from a picture of half the resolution, slightly off in colour, and its seam
    trembles by a fraction of a pixel.

    Args:
        true_THWC: the mouth region as recorded.
        forged_THWC: the mouth region as the forger draws it.
    """
    num_frames = len(true_THWC)
    x_1W, y_H1 = region_coordinates(pixels_per_unit)
    tremble_2T11 = rng.normal(0, 0.25 / pixels_per_unit, (2, num_frames, 1, 1)).astype(np.float32)
    x_THW, y_THW = x_1W + tremble_2T11[0] + 0 * y_H1, y_H1 + tremble_2T11[1] + 0 * x_1W
    mask_THW = ellipse(x_THW, y_THW, _BLEND_CENTRE, _BLEND_RADII, 0.08).astype(np.float32)
    seam_THW = (4 * mask_THW * (1 - mask_THW)).astype(np.float32)
    tint_C = rng.normal(size=3)
    tint_C = (_TINT * tint_C / np.linalg.norm(tint_C)).astype(np.float32)
    softened_THWC = _halve_resolution(forged_THWC) + tint_C
    blended_THWC = true_THWC + mask_THW[..., None] * (softened_THWC - true_THWC)
    return blended_THWC + (_SEAM * rng.choice((-1, 1)) * seam_THW)[..., None].astype(np.float32)


def _halve_resolution(image_THWC: np.ndarray) -> np.ndarray:
    image_TCHW = torch.from_numpy(np.ascontiguousarray(image_THWC.transpose(0, 3, 1, 2)))
    small_TCHW = F.avg_pool2d(image_TCHW, 2, ceil_mode=True)
    large_TCHW = F.interpolate(small_TCHW, size=image_TCHW.shape[2:], mode="bilinear", align_corners=False)
    return large_TCHW.permute(0, 2, 3, 1).numpy()


def vocode(rng: np.random.Generator, voice: np.ndarray) -> np.ndarray:
    """Passes a clean voice through a poor vocoder, which smears it; RMS 1 in, RMS 1 out.

    The trace: magnitudes are averaged over 40 ms, and above 1.5 kHz also over frequency while phases tremble.
    """
    spectrum = stft(voice)
    magnitude = np.abs(spectrum)
    high_F = step(np.fft.rfftfreq(2 * (spectrum.shape[1] - 1), 1 / SAMPLE_RATE_HZ) - 1500.0, 800.0)
    smeared = _smooth(magnitude, bell(np.arange(-2, 3), 1.2), axis=0)
    wide = _smooth(smeared, bell(np.arange(-3, 4), 1.5), axis=1)
    smeared += high_F * (wide - smeared)
    tremble = np.exp(0.6j * high_F * rng.standard_normal(spectrum.shape))
    vocoded = istft(smeared / np.maximum(magnitude, 1e-9) * spectrum * tremble, len(voice))
    return vocoded / np.sqrt(np.mean(vocoded**2))


def _smooth(values: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Returns the values averaged along an axis by a short kernel; edges are repeated."""
    radius = len(kernel) // 2
    padding = [(radius, radius) if index == axis else (0, 0) for index in range(values.ndim)]
    padded = np.pad(values, padding, mode="edge")
    length = values.shape[axis]
    shifted = (np.take(padded, range(k, k + length), axis) * weight for k, weight in enumerate(kernel / kernel.sum()))
    return sum(shifted, start=np.zeros_like(values))
