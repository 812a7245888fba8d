"""Position tables: learnable, started from sines and cosines, and resampled when a clip's grid changes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_table(grid: tuple[int, ...], width: int) -> Tensor:
    """Returns a (1, L, width) table over a grid of tokens, first axis slowest.

    Each axis gets an even share of the width, half sines and half cosines; what does not divide goes to the first
    axis, time.
    """
    share = width // len(grid) // 2 * 2
    widths = [width - share * (len(grid) - 1)] + [share] * (len(grid) - 1)
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float64) for count in grid), indexing="ij")
    parts = [_sincos(axis.flatten(), part) for axis, part in zip(axes, widths, strict=True)]
    return torch.cat(parts, dim=1).float().unsqueeze(0)


def _sincos(position_L: Tensor, width: int) -> Tensor:
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = position_L[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def resample_grid(values_LD: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Resamples values that live on a grid of tokens, linearly along every axis whose count changes.

    Args:
        values_LD: (product of old, D).

    Returns:
        (product of new, D) float32.
    """
    grid = values_LD.float().reshape(*old, -1)
    for axis, (count, target) in enumerate(zip(old, new, strict=True)):
        if count != target:
            line = grid.movedim(axis, -1)
            flat = line.reshape(1, -1, count)
            flat = F.interpolate(flat, size=target, mode="linear", align_corners=False)
            grid = flat.reshape(*line.shape[:-1], target).movedim(-1, axis)
    return grid.reshape(-1, values_LD.shape[-1])
