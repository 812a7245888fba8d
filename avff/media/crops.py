"""Square crops that follow a face."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class FacePath:
    """One face on consecutive stored frames of a segment, before ids are given.

    Attributes:
        first_frame: stored frame of the segment at which it starts.
        boxes_T4: x0, y0, x1, y1 in upright source pixels.
        scores_T: detector probability of the nearest detection.
        detected_T: True where the detector saw it at its nearest look, False where it missed it.
        identity: number of the person within the source.
    """

    first_frame: int
    boxes_T4: np.ndarray
    scores_T: np.ndarray
    detected_T: np.ndarray
    identity: int = 0

    @property
    def num_frames(self) -> int:
        return len(self.boxes_T4)

    @property
    def centres(self) -> np.ndarray:
        return (self.boxes_T4[:, :2] + self.boxes_T4[:, 2:]) / 2

    @property
    def longer_sides(self) -> np.ndarray:
        return (self.boxes_T4[:, 2:] - self.boxes_T4[:, :2]).max(axis=1)

    @property
    def areas(self) -> np.ndarray:
        return np.prod(self.boxes_T4[:, 2:] - self.boxes_T4[:, :2], axis=1)

    @property
    def crop_centres(self) -> np.ndarray:
        """x, y of the square crops, as metadata holds them; crops are cut from the rounded values."""
        return np.round(self.centres, 2)

    def crop_half_sides(self, crop_factor: float) -> np.ndarray:
        """Half sides of the square crops, likewise."""
        return np.round(self.longer_sides * crop_factor / 2, 2)


class PixelBox(NamedTuple):
    """Whole pixels [left, right) x [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int


class SquareRegion(NamedTuple):
    """Whole pixels that hold a square at sub-pixel position.

    Attributes:
        pixels_HWC: uint8; where the square reaches beyond the picture, its border pixels go on.
        box: x0, y0, x1, y1 of the square within them.
    """

    pixels_HWC: np.ndarray
    box: tuple[float, float, float, float]


def square_region(picture_HWC: np.ndarray, centre: np.ndarray, half_side: float) -> SquareRegion:
    """Cuts out what a square crop is made of.

    Args:
        picture_HWC: uint8 RGB.
        centre: x, y in pixels.
        half_side: half the side of the square in source pixels.
    """
    height, width = picture_HWC.shape[:2]
    return read_square_region(
        lambda box: picture_HWC[box.top : box.bottom, box.left : box.right], (width, height), centre, half_side
    )


def read_square_region(
    read: Callable[[PixelBox], np.ndarray], size: tuple[int, int], centre: np.ndarray, half_side: float
) -> SquareRegion:
    """Returns what `square_region` does, of a picture that need not be there as a whole.

    Args:
        read: from a box within the picture to its pixels, uint8 RGB.
        size: width and height of the picture.
    """
    width, height = size
    x0, y0 = centre[0] - half_side, centre[1] - half_side
    x1, y1 = centre[0] + half_side, centre[1] + half_side
    left, top, right, bottom = int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1))
    columns = np.clip(np.arange(left, right), 0, width - 1)
    rows = np.clip(np.arange(top, bottom), 0, height - 1)
    inside = PixelBox(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    region = read(inside)
    if inside != (left, top, right, bottom):
        region = region[(rows - inside.top)[:, None], (columns - inside.left)[None, :]]
    return SquareRegion(region, (x0 - left, y0 - top, x1 - left, y1 - top))


def square_crop(picture_HWC: np.ndarray, centre: np.ndarray, half_side: float, side_pixels: int) -> np.ndarray:
    """Cuts a square at sub-pixel position and scales it, bicubic; see `square_region`.

    Returns:
        uint8 (side_pixels, side_pixels, 3).
    """
    return scale_region(square_region(picture_HWC, centre, half_side), side_pixels)


def scale_region(region: SquareRegion, side_pixels: int) -> np.ndarray:
    """Returns the square within a region, scaled, bicubic, uint8 (side_pixels, side_pixels, 3)."""
    from PIL import Image  # here: avff.exporting cuts crops where there is no Pillow, ten times slower

    picture = Image.fromarray(region.pixels_HWC)
    return np.asarray(picture.resize((side_pixels, side_pixels), Image.Resampling.BICUBIC, box=region.box))
