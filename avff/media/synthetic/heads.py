"""Frames of a talking head: a scene behind, a head in motion, a camera in front.

A `Take` holds every random choice of a clip's picture, so that the same take can be rendered with and without a
forgery. The mouth is drawn on the head picture, then head and jaw are bent by one resampling per frame.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from avff.media.synthetic.drawing import bell, camera_noise, draw_wall, ellipse, paint, smooth_curve, smooth_noise
from avff.media.synthetic.faces import BOTTOM, LEFT, RIGHT, TOP, Face, paint_head
from avff.media.synthetic.forgery import blend_mouth
from avff.media.synthetic.mouth import MouthCurve, draw_mouths, mouth_region
from avff.seeding import generator

_JAW_DROP = 0.07
"""How far the chin sinks at full opening, in head units."""
_YAW_SHIFT = 0.16
"""How far the middle of the face moves against its outline at yaw 1, in head units."""


@dataclass(frozen=True)
class Take:
    """One recording's picture: what varies from clip to clip, drawn without looking at any label."""

    seed: int
    width: int
    height: int
    num_frames: int
    frames_per_second: float
    pixels_per_unit: float
    centre: tuple[float, float]
    """Resting place of the head's origin, in pixels."""
    softness_pixels: float
    noise_levels: float
    """Standard deviation of the camera's noise, in levels of 255."""
    exposure: float


def draw_take(seed: int, num_frames: int, frames_per_second: float) -> Take:
    """Draws the camera, the framing and the size of a clip's picture."""
    rng = generator(seed, "take")
    width, height = ((224, 224), (240, 208), (256, 224), (240, 240))[rng.integers(4)]
    pixels_per_unit = rng.uniform(0.19, 0.215) * height
    centre = (width * rng.uniform(0.44, 0.56), height * 0.47 + rng.uniform(-0.03, 0.03) * height)
    return Take(
        seed=seed,
        width=width,
        height=height,
        num_frames=num_frames,
        frames_per_second=frames_per_second,
        pixels_per_unit=pixels_per_unit,
        centre=centre,
        softness_pixels=rng.uniform(0.45, 0.9),
        noise_levels=rng.uniform(1.0, 3.5),
        exposure=rng.uniform(0.85, 1.12),
    )


def frame_times(take: Take) -> np.ndarray:
    """Returns the seconds at which the frames are taken."""
    return np.arange(take.num_frames) / take.frames_per_second


def render(take: Take, face: Face, curve: MouthCurve, forged_curve: MouthCurve | None = None) -> np.ndarray:
    """Draws all frames of a take.

    Args:
        curve: what the mouth truly did; it moves the jaw too, forged or not.
        forged_curve: what a forger makes the mouth do; nothing outside the mouth region depends on it.

    Returns:
        (T, H, W, 3) uint8 RGB.
    """
    heads_TCHW = _draw_heads(take, face, curve, forged_curve)
    background_HWC = _draw_background(take, face)
    rows, columns = _head_window(take)
    grid_THW2 = _sampling_grid(take, face, curve.opening_T, rows, columns)
    heads_TCHW = F.grid_sample(heads_TCHW, grid_THW2, mode="bilinear", padding_mode="zeros", align_corners=False)
    behind_CHW = torch.from_numpy(np.ascontiguousarray(background_HWC[rows, columns].transpose(2, 0, 1)))
    window_TCHW = heads_TCHW[:, :3] + (1 - heads_TCHW[:, 3:]) * behind_CHW
    return _expose(take, background_HWC, window_TCHW, rows, columns)


def _draw_heads(take: Take, face: Face, curve: MouthCurve, forged_curve: MouthCurve | None) -> torch.Tensor:
    """Returns head pictures with mouths and blinks, (T, 4, H, W), premultiplied by coverage."""
    open_HWC, closed_HWC = paint_head(face, generator(take.seed, "head"), take.pixels_per_unit, take.softness_pixels)
    rows, columns = mouth_region(take.pixels_per_unit)
    skin_HWC = open_HWC[rows, columns, :3]
    mouths_THWC = draw_mouths(skin_HWC, face, curve, take.pixels_per_unit)
    if forged_curve is not None:
        forged_THWC = draw_mouths(skin_HWC, face, forged_curve, take.pixels_per_unit)
        mouths_THWC = blend_mouth(generator(take.seed, "blend"), mouths_THWC, forged_THWC, take.pixels_per_unit)
    heads_TCHW = np.repeat(open_HWC.transpose(2, 0, 1)[None], take.num_frames, axis=0)
    blink_T = _blinks(take, face)
    eyes = slice(0, rows.start)
    lids_CHW = (closed_HWC - open_HWC)[eyes].transpose(2, 0, 1)
    for index in np.flatnonzero(blink_T > 0):
        heads_TCHW[index, :, eyes] += blink_T[index] * lids_CHW
    heads_TCHW[:, :3, rows, columns] = mouths_THWC.transpose(0, 3, 1, 2)
    heads_TCHW[:, :3] *= heads_TCHW[:, 3:]
    return torch.from_numpy(heads_TCHW)


def _blinks(take: Take, face: Face) -> np.ndarray:
    """Returns how far the lids are closed in each frame."""
    rng = generator(take.seed, "blinks")
    times_T = frame_times(take)
    count = rng.poisson(face.blink_hz * take.num_frames / take.frames_per_second)
    moments = rng.uniform(0, times_T[-1], count)
    closed_T = np.clip(1.4 - np.abs(times_T[:, None] - moments) / 0.07, 0, 1)
    return closed_T.max(axis=1, initial=0.0).astype(np.float32)


def _head_window(take: Take) -> tuple[slice, slice]:
    """Returns the rows and columns of the frame that the moving head can reach."""
    margin = 0.14 * take.pixels_per_unit + 6
    bounds = []
    for centre, low, high, limit in (
        (take.centre[1], TOP, BOTTOM, take.height),
        (take.centre[0], LEFT, RIGHT, take.width),
    ):
        start, stop = centre + low * take.pixels_per_unit - margin, centre + high * take.pixels_per_unit + margin
        bounds.append(slice(max(0, int(start)), min(limit, int(stop))))
    return bounds[0], bounds[1]


def _sampling_grid(take: Take, face: Face, opening_T: np.ndarray, rows: slice, columns: slice) -> torch.Tensor:
    """Returns where in the head picture each pixel of the window looks, per frame.

    The map is affine (shift, roll, size) plus two fixed fields: the bulge of the face, moved by yaw, and the jaw,
    moved by the mouth. So all frames are one product of coefficients with five basis pictures.
    """
    rng, times_T = generator(take.seed, "motion"), frame_times(take)
    drift_x, drift_y, roll, size, yaw = (smooth_curve(rng, times_T, 0.1, 0.6) * face.restlessness for _ in range(5))
    x_HW, y_HW = np.meshgrid(
        (np.arange(columns.start, columns.stop) + 0.5 - take.centre[0]) / take.pixels_per_unit,
        (np.arange(rows.start, rows.stop) + 0.5 - take.centre[1]) / take.pixels_per_unit,
    )
    bulge_HW = np.sqrt(np.clip(1 - np.square(x_HW) - np.square(y_HW / 1.4), 0, 1))
    jaw_HW = np.clip((y_HW - 0.45) / 0.6, 0, 1) * bell(x_HW, 0.8)
    basis_KP = np.stack([np.ones_like(x_HW), x_HW, y_HW, bulge_HW, jaw_HW]).reshape(5, -1).astype(np.float32)
    angle, scale, zero = 0.045 * roll, 1 - 0.018 * size, np.zeros_like(roll)
    sine, cosine = np.sin(angle) * scale, np.cos(angle) * scale
    to_x_TK = np.stack([-0.045 * drift_x, cosine, sine, -_YAW_SHIFT * 0.5 * yaw, zero], axis=1)
    to_y_TK = np.stack([-0.035 * drift_y, -sine, cosine, zero, -_JAW_DROP * opening_T], axis=1)
    x_TP, y_TP = to_x_TK.astype(np.float32) @ basis_KP, to_y_TK.astype(np.float32) @ basis_KP
    normalised = [(x_TP - LEFT) * (2 / (RIGHT - LEFT)) - 1, (y_TP - TOP) * (2 / (BOTTOM - TOP)) - 1]
    return torch.from_numpy(np.stack(normalised, axis=-1).reshape(take.num_frames, *x_HW.shape, 2))


def _draw_background(take: Take, face: Face) -> np.ndarray:
    """Returns wall, objects, neck and shoulders, (H, W, 3)."""
    rng, size = generator(take.seed, "background"), (take.height, take.width)
    image_HWC = draw_wall(rng, size)
    y_HW, x_HW = np.mgrid[: take.height, : take.width].astype(np.float32)
    unit, (x, y) = take.pixels_per_unit, take.centre
    shoulders_HW = ellipse(x_HW, y_HW, (x, y + 3.1 * unit), (2.1 * unit, 1.35 * unit), 3.0)
    neck_HW = ellipse(x_HW, y_HW, (x, y + 1.4 * unit), (0.52 * unit, 0.8 * unit), 3.0)
    paint(image_HWC, shoulders_HW, face.shirt * (1 + 0.1 * smooth_noise(rng, size, 9.0)[..., None]))
    shade_HW = 0.85 - 0.35 * bell(y_HW - y - 1.35 * unit, 0.25 * unit)
    paint(image_HWC, neck_HW, face.skin * shade_HW[..., None])
    return np.clip(image_HWC, 0, 1).astype(np.float32)


def _expose(
    take: Take, background_HWC: np.ndarray, window_TCHW: torch.Tensor, rows: slice, columns: slice
) -> np.ndarray:
    """Puts the window into the frames and adds exposure and the camera's noise, (T, H, W, 3) uint8."""
    rng, size = generator(take.seed, "noise"), (take.height, take.width)
    gain = 255 * take.exposure
    frames_THWC = np.empty((take.num_frames, *size, 3), np.uint8)
    picture_HWC = background_HWC * gain
    noises = camera_noise(rng, size, take.noise_levels, take.num_frames)
    for frame_HWC, window_CHW, noise_HW1 in zip(frames_THWC, window_TCHW, noises, strict=True):
        picture_HWC[rows, columns] = window_CHW.permute(1, 2, 0).numpy() * gain
        frame_HWC[:] = np.clip(picture_HWC + noise_HW1, 0, 255)
    return frames_THWC
