"""The mouth: lips, teeth and the dark between them, drawn for all frames at once onto the skin around it."""

from typing import NamedTuple

import numpy as np

from avff.media.synthetic.drawing import bell, step
from avff.media.synthetic.faces import LEFT, MOUTH_Y, TOP, Face

HALF_WIDTH, HALF_HEIGHT = 0.72, 0.56
"""Half the extent of the mouth region, in head units."""
_REGION_SINK = 0.10
"""How far the region's middle lies below the closed mouth, in head units."""
_MAX_GAP = 0.48
"""Distance between the lips at full opening, in head units."""
_UPPER_SHARE = 0.28
"""Share of the gap that lies above the resting line."""


class MouthCurve(NamedTuple):
    """What a mouth does, one float per frame."""

    opening_T: np.ndarray
    """0 closed to 1 wide open."""
    spread_T: np.ndarray
    """-1 rounded to 1 spread."""


def mouth_region(pixels_per_unit: float) -> tuple[slice, slice]:
    """Returns the rows and columns of the head picture that the mouth can reach."""
    middle_row = round((MOUTH_Y + _REGION_SINK - TOP) * pixels_per_unit)
    middle_column = round(-LEFT * pixels_per_unit)
    half_rows, half_columns = round(HALF_HEIGHT * pixels_per_unit), round(HALF_WIDTH * pixels_per_unit)
    return (
        slice(middle_row - half_rows, middle_row + half_rows),
        slice(middle_column - half_columns, middle_column + half_columns),
    )


def region_coordinates(pixels_per_unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the mouth region's pixels relative to the middle of the closed mouth, in head units."""
    rows, columns = mouth_region(pixels_per_unit)
    y_H = TOP + (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / pixels_per_unit - MOUTH_Y
    x_W = LEFT + (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / pixels_per_unit
    return x_W[None, :], y_H[:, None]


def draw_mouths(skin_HWC: np.ndarray, face: Face, curve: MouthCurve, pixels_per_unit: float) -> np.ndarray:
    """Draws the mouth over the skin of the mouth region, one picture per frame.

    Args:
        skin_HWC: the mouth region of the head picture.
        curve: what the mouth does.

    Returns:
        (T, H, W, 3) float32.
    """
    opening_T, spread_T = (values_T.astype(np.float32) for values_T in curve)
    x_1W, y_H1 = region_coordinates(pixels_per_unit)
    softness = 1.6 / pixels_per_unit
    half_width_T11 = (face.mouth_half_width * (1 + 0.22 * spread_T - 0.10 * opening_T))[:, None, None]
    arc_TW = np.clip(1.0 - np.square(x_1W / half_width_T11), 0.0, 1.0).astype(np.float32)
    gap_TW = (_MAX_GAP * opening_T)[:, None, None] * np.sqrt(arc_TW)
    upper_TW, lower_TW = -_UPPER_SHARE * gap_TW, (1 - _UPPER_SHARE) * gap_TW
    bow_1W = 1.0 - 0.25 * bell(x_1W, 0.05)
    thickness_TW = face.lip_thickness * np.sqrt(arc_TW) * (1 - 0.2 * opening_T)[:, None, None]
    from_top_THW = y_H1 - (upper_TW - 0.85 * thickness_TW * bow_1W)
    from_bottom_THW = (lower_TW + 1.15 * thickness_TW) - y_H1
    inside_T1W = arc_TW > 0
    lips_THW = step(from_top_THW, softness) * step(from_bottom_THW, softness) * inside_T1W
    below_upper_THW, above_lower_THW = y_H1 - upper_TW, lower_TW - y_H1
    # The gap closes to a dark line rather than to nothing.
    hole_THW = step(below_upper_THW + 0.008, softness) * step(above_lower_THW + 0.008, softness) * inside_T1W
    lit_THW = 1.0 + 0.25 * bell(y_H1 - lower_TW - 0.55 * thickness_TW, 0.03) - 0.12 * (y_H1 < 0)
    teeth_THW = hole_THW * step(0.075 - below_upper_THW, softness) * step(gap_TW - 0.06, 0.08)
    tongue_THW = hole_THW * step(0.07 - above_lower_THW, 2 * softness) * step(gap_TW - 0.14, 0.1)
    picture_THWC = np.repeat(skin_HWC[None].astype(np.float32), len(opening_T), axis=0)
    shadow_THW = 0.22 * bell(y_H1 - lower_TW - 1.15 * thickness_TW - 0.05, 0.035) * arc_TW
    for channel in range(3):
        plane_THW = picture_THWC[..., channel]
        plane_THW *= 1.0 - shadow_THW
        plane_THW += lips_THW * (face.lip[channel] * lit_THW - plane_THW)
        plane_THW += hole_THW * ((0.13, 0.05, 0.05)[channel] - plane_THW)
        plane_THW += teeth_THW * ((0.84, 0.82, 0.76)[channel] - plane_THW)
        plane_THW += tongue_THW * ((0.55, 0.25, 0.25)[channel] - plane_THW)
    return picture_THWC
