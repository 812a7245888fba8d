"""Frames of a talking head: a scene behind, a head in motion, a camera in front.

A `Take` holds every random choice of a clip's picture, so that the same take can be rendered with and without a
forgery. The mouth is drawn on the head picture, then head and jaw are bent by one resampling per frame.
"""

from dataclasses import dataclass
from itertools import chain

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
_YAW_SHIFT = 0.08
"""How far the middle of the face moves against its outline at yaw 1, in head units."""
_SIZES = ((208, 208), (224, 192), (256, 192), (224, 208))
"""Width and height of the frames."""
_CHUNK_FRAMES = 8
"""Frames bent at once: few enough to stay in the processor's cache."""


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
    width, height = _SIZES[rng.integers(len(_SIZES))]
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
        noise_levels=rng.uniform(0.8, 2.8),
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
    open_HWC, closed_HWC = paint_head(face, generator(take.seed, "head"), take.pixels_per_unit, take.softness_pixels)
    mouths_THWC = _draw_mouths(take, face, open_HWC, curve, forged_curve)
    blink_T, motion_T2K = _blinks(take, face), _motion(take, face, curve.opening_T)
    wall_HWC = _draw_background(take, face) * (255 * take.exposure)
    rows, columns = _head_window(take)
    basis_KHW = _motion_basis(take, rows, columns)
    behind_CHW = torch.from_numpy(np.ascontiguousarray(wall_HWC[rows, columns].transpose(2, 0, 1)))
    windows = []
    for start in range(0, take.num_frames, _CHUNK_FRAMES):
        chunk = slice(start, start + _CHUNK_FRAMES)
        heads_TCHW = _assemble_heads(take, open_HWC, closed_HWC, blink_T[chunk], mouths_THWC[chunk])
        heads_TCHW = F.grid_sample(heads_TCHW, _sampling_grid(motion_T2K[chunk], basis_KHW), align_corners=False)
        over_TCHW = heads_TCHW[:, :3] * (255 * take.exposure)
        windows.append(over_TCHW.addcmul_(1 - heads_TCHW[:, 3:], behind_CHW).permute(0, 2, 3, 1).numpy())
    return _add_noise(take, wall_HWC, (rows, columns), windows)


def _draw_mouths(
    take: Take, face: Face, head_HWC: np.ndarray, curve: MouthCurve, forged_curve: MouthCurve | None
) -> np.ndarray:
    """Returns the mouth region of every frame, (T, H, W, 3), forged where a forged curve is given."""
    rows, columns = mouth_region(take.pixels_per_unit)
    skin_HWC = head_HWC[rows, columns, :3]
    true_THWC = draw_mouths(skin_HWC, face, curve, take.pixels_per_unit)
    if forged_curve is None:
        return true_THWC
    forged_THWC = draw_mouths(skin_HWC, face, forged_curve, take.pixels_per_unit)
    return blend_mouth(generator(take.seed, "blend"), true_THWC, forged_THWC, take.pixels_per_unit)


def _assemble_heads(
    take: Take, open_HWC: np.ndarray, closed_HWC: np.ndarray, blink_T: np.ndarray, mouths_THWC: np.ndarray
) -> torch.Tensor:
    """Returns head pictures with mouths and blinks, (T, 4, H, W), premultiplied by coverage."""
    rows, columns = mouth_region(take.pixels_per_unit)
    heads_TCHW = np.repeat(open_HWC.transpose(2, 0, 1)[None], len(blink_T), axis=0)
    lids_CHW = (closed_HWC - open_HWC)[: rows.start].transpose(2, 0, 1)
    for index in np.flatnonzero(blink_T > 0):
        heads_TCHW[index, :, : rows.start] += blink_T[index] * lids_CHW
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


# Where a pixel of the frame looks in the head picture is an affine map (shift, roll, size) plus two fixed fields: the
# bulge of the face, moved by yaw, and the jaw, moved by the mouth. So a frame is a product of coefficients and a basis.


def _motion_basis(take: Take, rows: slice, columns: slice) -> np.ndarray:
    """Returns the five pictures 1, x, y, bulge and jaw over the window, (K, H, W) float32."""
    x_HW, y_HW = np.meshgrid(
        (np.arange(columns.start, columns.stop) + 0.5 - take.centre[0]) / take.pixels_per_unit,
        (np.arange(rows.start, rows.stop) + 0.5 - take.centre[1]) / take.pixels_per_unit,
    )
    bulge_HW = np.sqrt(np.clip(1 - np.square(x_HW) - np.square(y_HW / 1.4), 0, 1))
    jaw_HW = np.clip((y_HW - 0.45) / 0.6, 0, 1) * bell(x_HW, 0.8)
    return np.stack([np.ones_like(x_HW), x_HW, y_HW, bulge_HW, jaw_HW]).astype(np.float32)


def _motion(take: Take, face: Face, opening_T: np.ndarray) -> np.ndarray:
    """Returns how much of each basis picture makes x and y of the head picture, (T, 2, K) float32."""
    rng, times_T = generator(take.seed, "motion"), frame_times(take)
    drift_x, drift_y, roll, size, yaw = (smooth_curve(rng, times_T, 0.1, 0.6) * face.restlessness for _ in range(5))
    angle, scale, zero = 0.045 * roll, 1 - 0.018 * size, np.zeros_like(roll)
    sine, cosine = np.sin(angle) * scale, np.cos(angle) * scale
    to_x_TK = np.stack([-0.045 * drift_x, cosine, sine, -_YAW_SHIFT * yaw, zero], axis=1)
    to_y_TK = np.stack([-0.035 * drift_y, -sine, cosine, zero, -_JAW_DROP * opening_T], axis=1)
    return np.stack([to_x_TK, to_y_TK], axis=1).astype(np.float32)


def _sampling_grid(motion_T2K: np.ndarray, basis_KHW: np.ndarray) -> torch.Tensor:
    """Returns where in the head picture each pixel of the window looks, (T, H, W, 2) in [-1, 1]."""
    places_T2HW = torch.tensordot(torch.from_numpy(motion_T2K), torch.from_numpy(basis_KHW), dims=1)
    low_2, size_2 = torch.tensor([LEFT, TOP]), torch.tensor([RIGHT - LEFT, BOTTOM - TOP])
    return (places_T2HW.permute(0, 2, 3, 1) - low_2) * (2 / size_2) - 1


def _draw_background(take: Take, face: Face) -> np.ndarray:
    """Returns wall, neck and shoulders, (H, W, 3)."""
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


def _add_noise(take: Take, wall_HWC: np.ndarray, place: tuple[slice, slice], windows: list[np.ndarray]) -> np.ndarray:
    """Puts the windows, given in chunks of (T, H, W, 3), into the frames and adds the camera's noise, uint8."""
    rng, size = generator(take.seed, "noise"), (take.height, take.width)
    frames_THWC = np.empty((take.num_frames, *size, 3), np.uint8)
    picture_HWC, noisy_HWC = wall_HWC.copy(), np.empty_like(wall_HWC)
    noises = camera_noise(rng, size, take.noise_levels, take.num_frames)
    for frame_HWC, window_HWC, noise_HWC in zip(frames_THWC, chain.from_iterable(windows), noises, strict=True):
        picture_HWC[place] = window_HWC
        np.add(picture_HWC, noise_HWC, out=noisy_HWC)
        frame_HWC[:] = np.clip(noisy_HWC, 0, 255, out=noisy_HWC)
    return frames_THWC
