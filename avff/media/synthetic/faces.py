"""What a generated person looks like, and the still picture of the head that motion later bends.

Heads live in their own coordinates: 1 is half the width of the face, x to the right, y down, the origin between
the eyes and the nose. Eyes lie at y = -0.15, the mouth at y = MOUTH_Y, the chin near 1.4.
MTCNN does not find plain ovals; brows, nose, shading, hair and blur make these count as faces.
"""

from dataclasses import dataclass

import numpy as np

from avff.media.synthetic.drawing import bell, blur, ellipse, paint, smooth_noise, step

MOUTH_Y = 0.80
EYE_Y = -0.15
LEFT, RIGHT, TOP, BOTTOM = -1.6, 1.6, -1.75, 1.75
"""Extent of the head picture in head units."""

_SKINS = np.array([[0.94, 0.78, 0.68], [0.85, 0.65, 0.53], [0.74, 0.54, 0.41], [0.58, 0.40, 0.29], [0.43, 0.29, 0.21]])
_HAIRS = np.array([[0.10, 0.08, 0.07], [0.26, 0.16, 0.10], [0.48, 0.31, 0.17], [0.75, 0.60, 0.36], [0.55, 0.53, 0.52]])
_IRISES = np.array([[0.25, 0.15, 0.08], [0.20, 0.34, 0.50], [0.25, 0.40, 0.25], [0.40, 0.28, 0.12]])


@dataclass(frozen=True)
class Face:
    """How one person looks; lengths in head units, colours RGB in [0, 1]."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lip: np.ndarray
    shirt: np.ndarray
    chin_y: float
    jaw: float
    """How much the face narrows towards the chin, 0 to 0.5."""
    eye_x: float
    eye_size: float
    brow_y: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    mouth_half_width: float
    lip_thickness: float
    hairline_y: float
    hair_volume: float
    hair_length: float
    """How far down the hair falls at the sides."""
    blink_hz: float
    restlessness: float
    """Size of head motion, around 1."""


def draw_face(rng: np.random.Generator) -> Face:
    """Draws a person's looks."""
    skin = _mix(rng, _SKINS)
    return Face(
        skin=skin,
        hair=_mix(rng, _HAIRS) * rng.uniform(0.8, 1.1),
        iris=_IRISES[rng.integers(len(_IRISES))],
        lip=np.clip(skin * np.array([0.88, 0.58, 0.60]) + rng.uniform(-0.03, 0.03, 3), 0.05, 0.95),
        shirt=rng.uniform(0.1, 0.85, 3),
        chin_y=rng.uniform(1.3, 1.48),
        jaw=rng.uniform(0.12, 0.38),
        eye_x=rng.uniform(0.38, 0.46),
        eye_size=rng.uniform(0.15, 0.19),
        brow_y=rng.uniform(-0.50, -0.42),
        brow_thickness=rng.uniform(0.035, 0.065),
        nose_length=rng.uniform(0.50, 0.62),
        nose_width=rng.uniform(0.14, 0.20),
        mouth_half_width=rng.uniform(0.34, 0.44),
        lip_thickness=rng.uniform(0.07, 0.11),
        hairline_y=rng.uniform(-0.95, -0.75),
        hair_volume=rng.uniform(0.08, 0.25),
        hair_length=rng.uniform(-0.5, 1.2),
        blink_hz=rng.uniform(0.2, 0.5),
        restlessness=rng.uniform(0.5, 1.3),
    )


def _mix(rng: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """Returns a random colour between two neighbours of a palette."""
    position = rng.uniform(0, len(colours) - 1)
    index = min(int(position), len(colours) - 2)
    return colours[index] + (position - index) * (colours[index + 1] - colours[index])


def head_coordinates(pixels_per_unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y in head units at the pixels of the head picture, (H, W) each."""
    width, height = round((RIGHT - LEFT) * pixels_per_unit), round((BOTTOM - TOP) * pixels_per_unit)
    x = LEFT + (np.arange(width, dtype=np.float32) + 0.5) / pixels_per_unit
    y = TOP + (np.arange(height, dtype=np.float32) + 0.5) / pixels_per_unit
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def paint_head(
    face: Face, rng: np.random.Generator, pixels_per_unit: float, softness_pixels: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the head without a mouth, under a light drawn from `rng`.

    Returns:
        The head with open eyes and with closed eyes, (H, W, 4) float32 each: RGB and coverage, not premultiplied.
    """
    x_HW, y_HW = head_coordinates(pixels_per_unit)
    pixel = 1.0 / pixels_per_unit
    light = (rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.1))
    image_HWC = np.empty((*x_HW.shape, 3), np.float32)
    image_HWC[:] = face.hair
    image_HWC *= 1.0 + 0.12 * smooth_noise(rng, x_HW.shape, pixels_per_unit * 0.12)[..., None]
    skin_HW, depth_HW = _face_mask(face, x_HW, y_HW, 2 * pixel)
    paint(image_HWC, _ears(face, x_HW, y_HW, 2 * pixel), face.skin * 0.82)
    paint(image_HWC, skin_HW, _lit_skin(face, x_HW, y_HW, depth_HW, light, rng))
    paint(image_HWC, _fringe(face, x_HW, y_HW, rng, pixel), face.hair * 0.9)
    _paint_nose(image_HWC, face, x_HW, y_HW, light[0])
    _paint_brows(image_HWC, face, x_HW, y_HW)
    closed_HWC = image_HWC.copy()
    for side in (-1, 1):
        _paint_eye(image_HWC, face, side * face.eye_x, x_HW, y_HW, pixel)
        _paint_lid(closed_HWC, face, side * face.eye_x, x_HW, y_HW)
    coverage_HW = _coverage(face, x_HW, y_HW, skin_HW, 3 * pixel)
    pictures = [np.concatenate([image, coverage_HW[..., None]], axis=2) for image in (image_HWC, closed_HWC)]
    return blur(pictures[0], softness_pixels), blur(pictures[1], softness_pixels)


def _face_mask(face: Face, x_HW: np.ndarray, y_HW: np.ndarray, softness: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the skin's coverage and its depth (1 at the middle of the face, 0 at its outline)."""
    height_HW = np.where(y_HW > 0.1, (y_HW - 0.1) / (face.chin_y - 0.1), (0.1 - y_HW) / 1.35)
    narrowing_HW = 1.0 - face.jaw * np.square(np.clip(height_HW, 0, 1)) * (y_HW > 0.1)
    radius_HW = np.power(np.abs(height_HW) ** 2.3 + np.abs(x_HW / narrowing_HW) ** 2.3, 1 / 2.3)
    return np.clip((1.0 - radius_HW) / softness + 0.5, 0, 1), np.sqrt(np.clip(1.0 - radius_HW**2, 0, 1))


def _lit_skin(
    face: Face,
    x_HW: np.ndarray,
    y_HW: np.ndarray,
    depth_HW: np.ndarray,
    light: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns the skin's colours: shading of a bulging face, sockets, cheeks, folds and blotches."""
    shade_HW = 0.62 + 0.40 * depth_HW + 0.16 * (light[0] * x_HW + light[1] * y_HW)
    for side in (-1, 1):
        shade_HW -= 0.16 * bell(x_HW - side * face.eye_x, 0.24) * bell(y_HW + 0.22, 0.14)
        shade_HW += 0.06 * bell(x_HW - side * 0.52, 0.2) * bell(y_HW - 0.30, 0.16)
        shade_HW -= 0.07 * bell(x_HW - side * (0.24 + 0.3 * (y_HW - 0.4)), 0.05) * bell(y_HW - 0.6, 0.16)
    shade_HW -= 0.09 * bell(x_HW, 0.25) * bell(y_HW - MOUTH_Y - 0.24, 0.05)
    shade_HW += 0.05 * bell(x_HW, 0.4) * bell(y_HW + 0.62, 0.2)
    shade_HW *= 1.0 + 0.02 * smooth_noise(rng, x_HW.shape, 5.0)
    skin_HWC = shade_HW[..., None] * face.skin.astype(np.float32)
    cheeks_HW = sum(bell(x_HW - side * 0.55, 0.22) * bell(y_HW - 0.38, 0.2) for side in (-1, 1))
    skin_HWC[..., 1:] *= 1.0 - 0.08 * cheeks_HW[..., None]
    return skin_HWC


def _ears(face: Face, x_HW: np.ndarray, y_HW: np.ndarray, softness: float) -> np.ndarray:
    visible = float(face.hair_length < 0.2)
    return visible * ellipse(np.abs(x_HW), y_HW, (1.0, 0.1), (0.12, 0.26), softness)


def _fringe(face: Face, x_HW: np.ndarray, y_HW: np.ndarray, rng: np.random.Generator, pixel: float) -> np.ndarray:
    """Returns the hair that lies over the forehead, with a ragged edge."""
    ragged_HW = 0.05 * smooth_noise(rng, x_HW.shape, 6.0)
    edge_HW = face.hairline_y + 0.45 * np.square(x_HW) * (0.4 + face.hair_volume) + ragged_HW
    return step(edge_HW - y_HW, 4 * pixel)


def _coverage(face: Face, x_HW: np.ndarray, y_HW: np.ndarray, skin_HW: np.ndarray, softness: float) -> np.ndarray:
    """Returns the head's outline: skin, ears and hair."""
    volume = face.hair_volume
    hair_HW = ellipse(x_HW, y_HW, (0.0, -0.35), (1.06 + volume, 1.12 + volume), softness)
    hair_HW = hair_HW * step(face.hair_length - y_HW, 6 * softness)
    falling_HW = ellipse(np.abs(x_HW), y_HW, (0.95, 0.1), (0.18 + volume, 1.3), softness)
    hair_HW = np.maximum(hair_HW, falling_HW * step(face.hair_length - y_HW, 6 * softness) * (y_HW > -0.4))
    return np.maximum(np.maximum(skin_HW, hair_HW), _ears(face, x_HW, y_HW, softness))


def _paint_nose(image_HWC: np.ndarray, face: Face, x_HW: np.ndarray, y_HW: np.ndarray, light_x: float) -> None:
    tip_y = EYE_Y + face.nose_length
    along_HW = step(y_HW - EYE_Y, 0.2) * step(tip_y - y_HW, 0.1)
    side_HW = np.clip((x_HW * (1 if light_x < 0 else -1)) / face.nose_width, -1, 1)
    image_HWC *= 1.0 - (0.13 * along_HW * bell(x_HW, face.nose_width) * side_HW)[..., None]
    image_HWC *= 1.0 + (0.13 * along_HW * bell(x_HW, 0.05))[..., None]
    image_HWC *= 1.0 + (0.10 * ellipse(x_HW, y_HW, (0, tip_y - 0.06), (0.1, 0.08), 0.1))[..., None]
    under_HW = bell(x_HW, face.nose_width) * bell(y_HW - tip_y - 0.05, 0.045)
    image_HWC *= 1.0 - 0.28 * under_HW[..., None]
    for side in (-1, 1):
        nostril_HW = ellipse(x_HW, y_HW, (side * face.nose_width * 0.5, tip_y + 0.01), (0.055, 0.03), 0.04)
        paint(image_HWC, 0.75 * nostril_HW, face.skin * 0.25)
        wing_HW = bell(np.hypot(x_HW - side * face.nose_width, y_HW - tip_y + 0.05), 0.05)
        image_HWC *= 1.0 - 0.16 * wing_HW[..., None]
    image_HWC *= 1.0 - (0.10 * bell(x_HW, 0.035) * bell(y_HW - (tip_y + MOUTH_Y) / 2, 0.07))[..., None]


def _paint_brows(image_HWC: np.ndarray, face: Face, x_HW: np.ndarray, y_HW: np.ndarray) -> None:
    along_HW = (np.abs(x_HW) - face.eye_x) / 0.24
    arch_HW = face.brow_y + 0.06 * np.square(along_HW - 0.2)
    thickness_HW = face.brow_thickness * (1.15 - 0.35 * np.clip(along_HW, -1, 1))
    hairs_HW = bell(y_HW - arch_HW, 1.0 * thickness_HW) * step(1.0 - np.abs(along_HW), 0.35)
    paint(image_HWC, 0.85 * hairs_HW, face.hair * 0.6)


def _paint_eye(
    image_HWC: np.ndarray, face: Face, centre_x: float, x_HW: np.ndarray, y_HW: np.ndarray, pixel: float
) -> None:
    size = face.eye_size
    u_HW = (x_HW - centre_x) / (size * 1.15)
    arc_HW = np.clip(1.0 - np.square(u_HW), 0, 1)
    upper_HW, lower_HW = EYE_Y - 0.55 * size * arc_HW, EYE_Y + 0.40 * size * arc_HW
    open_HW = step(y_HW - upper_HW, 2 * pixel) * step(lower_HW - y_HW, 2 * pixel) * step(1 - np.abs(u_HW), 0.1)
    ball_HWC = np.empty_like(image_HWC)
    ball_HWC[:] = (0.90, 0.88, 0.86)
    ball_HWC *= (1.0 - 0.35 * bell(y_HW - upper_HW, 0.05))[..., None]
    paint(ball_HWC, ellipse(x_HW, y_HW, (centre_x, EYE_Y - 0.02), (0.5 * size, 0.5 * size), 2 * pixel), face.iris)
    paint(ball_HWC, ellipse(x_HW, y_HW, (centre_x, EYE_Y - 0.02), (0.24 * size, 0.24 * size), 2 * pixel), np.zeros(3))
    paint(ball_HWC, bell(np.hypot(x_HW - centre_x - 0.03, y_HW - EYE_Y + 0.045), 0.018), np.ones(3))
    paint(image_HWC, open_HW, ball_HWC)
    near_HW = step(1.25 - np.abs(u_HW), 0.3)
    paint(image_HWC, 0.8 * near_HW * bell(y_HW - upper_HW, 0.022), face.skin * 0.18)
    paint(image_HWC, 0.35 * near_HW * bell(y_HW - lower_HW, 0.018), face.skin * 0.4)
    paint(image_HWC, 0.35 * near_HW * bell(y_HW - upper_HW + 0.07, 0.02), face.skin * 0.5)


def _paint_lid(image_HWC: np.ndarray, face: Face, centre_x: float, x_HW: np.ndarray, y_HW: np.ndarray) -> None:
    u_HW = (x_HW - centre_x) / (face.eye_size * 1.15)
    line_HW = EYE_Y + 0.25 * face.eye_size * np.clip(1.0 - np.square(u_HW), 0, 1)
    paint(image_HWC, 0.75 * step(1.2 - np.abs(u_HW), 0.3) * bell(y_HW - line_HW, 0.022), face.skin * 0.2)
