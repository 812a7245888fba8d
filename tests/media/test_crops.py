"""Square crops: position, scale, border."""

import numpy as np
import pytest

from avff.media.crops import square_crop


def gradient() -> np.ndarray:
    """Red says x, green says y."""
    y, x = np.mgrid[:80, :120]
    return np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


def test_crop_at_whole_pixels_is_the_region_itself():
    crop = square_crop(gradient(), np.array([50.0, 40.0]), 16.0, 32)
    assert np.array_equal(crop, gradient()[24:56, 34:66])


@pytest.mark.parametrize("shift", [0.25, 0.5, 0.75])
def test_sub_pixel_position_is_followed(shift):
    crop = square_crop(gradient() * 2, np.array([50.0 + shift, 40.0]), 16.0, 32)
    assert crop[5:-5, 5:-5, 0].mean() == pytest.approx(2 * (49.5 + shift), abs=0.51)  # one grey level per half pixel


def test_outside_the_picture_its_border_goes_on():
    crop = square_crop(gradient(), np.array([2.0, 78.0]), 20.0, 40)
    assert np.all(crop[:, :18, 0] == 0) and np.all(crop[22:, :, 1] == 79)
    assert np.array_equal(crop[:22, 18:], gradient()[58:80, :22])


def test_far_outside_still_gives_a_square():
    assert square_crop(gradient(), np.array([-500.0, 900.0]), 20.3, 32).shape == (32, 32, 3)
