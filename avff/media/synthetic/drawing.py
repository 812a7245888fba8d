"""Small raster helpers of the generator: soft shapes, smooth noise, smooth curves, blur.

Pictures are float32 in [0, 1], (H, W, C). Coordinates are given per pixel, so that a shape is a formula.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F


def ellipse(
    x_HW: np.ndarray, y_HW: np.ndarray, centre: tuple[float, float], radii: tuple[float, float], softness: float
) -> np.ndarray:
    """Returns the coverage in [0, 1] of an ellipse whose edge is `softness` wide, in the units of x and y."""
    distance_HW = np.hypot((x_HW - centre[0]) / radii[0], (y_HW - centre[1]) / radii[1])
    return np.clip((1.0 - distance_HW) * min(radii) / softness + 0.5, 0.0, 1.0)


def step(value: np.ndarray, softness: float) -> np.ndarray:
    """Returns 0 where value is below -softness / 2, 1 above softness / 2, and a ramp between."""
    return np.clip(value / softness + 0.5, 0.0, 1.0)


def bell(value: np.ndarray, width: float) -> np.ndarray:
    """Returns a Gaussian bump of height 1 and standard deviation `width`."""
    return np.exp(-0.5 * np.square(value / width))


def paint(image_HWC: np.ndarray, coverage_HW: np.ndarray, colour: np.ndarray) -> None:
    """Lays a colour, or a picture of colours, over the image in place."""
    image_HWC += coverage_HW[..., None] * (colour - image_HWC)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Returns (H, W) float32 noise of unit variance at its knots, which are `cell` pixels apart."""
    knots = (max(2, round(size[0] / cell)), max(2, round(size[1] / cell)))
    knots_11HW = torch.from_numpy(rng.standard_normal(knots, dtype=np.float32))[None, None]
    return F.interpolate(knots_11HW, size=size, mode="bicubic", align_corners=True)[0, 0].numpy()


def smooth_curve(rng: np.random.Generator, times_T: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Returns a wandering curve of about unit variance: three sinusoids between the two frequencies."""
    frequency_hz, phase = rng.uniform(low_hz, high_hz, 3), rng.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * frequency_hz * times_T[:, None] + phase)
    return (waves.sum(1) * np.sqrt(2 / 3)).astype(np.float32)


def blur(image_HWC: np.ndarray, sigma: float) -> np.ndarray:
    """Returns the image after a Gaussian of `sigma` pixels; edges are repeated."""
    radius = max(1, round(3 * sigma))
    kernel = torch.from_numpy(bell(np.arange(-radius, radius + 1, dtype=np.float32), sigma))
    kernel = (kernel / kernel.sum()).float()
    image_C1HW = torch.from_numpy(image_HWC.transpose(2, 0, 1).astype(np.float32))[:, None]
    image_C1HW = F.pad(image_C1HW, (radius,) * 4, mode="replicate")
    image_C1HW = F.conv2d(F.conv2d(image_C1HW, kernel[None, None, :, None]), kernel[None, None, None, :])
    return image_C1HW[:, 0].permute(1, 2, 0).numpy()


def draw_wall(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Returns a background, (H, W, 3): two colours running into each other, blobs, grain, out of focus."""
    height, width = size
    y_HW, x_HW = np.mgrid[:height, :width].astype(np.float32)
    colours, mix_HW = rng.uniform(0.2, 0.8, (2, 3)), x_HW * rng.uniform(-1, 1) + y_HW * rng.uniform(-1, 1)
    mix_HW = (mix_HW - mix_HW.min()) / (np.ptp(mix_HW) + 1e-6)
    image_HWC = (colours[0] + mix_HW[..., None] * (colours[1] - colours[0])).astype(np.float32)
    for _ in range(rng.integers(2, 7)):
        centre, radii = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.08, 0.35, 2) * width
        blob_HW = ellipse(x_HW, y_HW, (centre[0], centre[1]), (radii[0], radii[1]), rng.uniform(2, 20))
        paint(image_HWC, rng.uniform(0.3, 1) * blob_HW, rng.uniform(0.1, 0.9, 3))
    image_HWC *= 1 + rng.uniform(0.0, 0.06) * smooth_noise(rng, size, rng.uniform(4, 16))[..., None]
    return blur(image_HWC, rng.uniform(0.8, 3.0))


def camera_noise(rng: np.random.Generator, size: tuple[int, int], levels: float, count: int) -> Iterator[np.ndarray]:
    """Yields `count` grey pictures of noise, (H, W, 3), with a mean of 0.5 so that cutting off decimals rounds.

    They are windows into one larger picture: a fresh one per frame costs as much as all the rest of drawing.
    """
    room = 32
    tile_HW = 0.5 + levels * rng.standard_normal((size[0] + room, size[1] + room), dtype=np.float32)
    tile_HWC = np.repeat(tile_HW[..., None], 3, axis=2)
    for top, left in rng.integers(0, room + 1, (count, 2)):
        yield tile_HWC[top : top + size[0], left : left + size[1]]
