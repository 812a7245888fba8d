"""Parts of pictures are converted as the whole is, to the bit."""

import numpy as np
import pytest
from media_files import Pictures, write_media

from avff.media import reader
from avff.media.crops import PixelBox
from avff.media.reader import UprightPicture, read_frames, upright_rgb


def write_noise(path, width, height, rotation=0):
    """A picture in which every pixel and every colour differs from its neighbours."""
    picture = np.random.default_rng(1).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    frames_THWC = np.concatenate([picture, picture[:, ::-1]])
    return write_media(path, [Pictures([0.0, 0.04], frames_THWC)], rotation=rotation)


def boxes(width, height, count):
    rng = np.random.default_rng(2)
    yield PixelBox(0, 0, width, height)
    for _ in range(count):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        yield PixelBox(left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_box_equals_that_of_the_whole_picture(tmp_path, rotation, monkeypatch):
    frame = next(iter(read_frames(write_noise(tmp_path / "noise.mov", 150, 94, rotation))))
    size = (94, 150) if rotation % 180 else (150, 94)
    whole_HWC = upright_rgb(frame.picture, size)
    converted = []
    original = reader._to_rgb
    monkeypatch.setattr(reader, "_to_rgb", lambda *args: converted.append(args[1:]) or original(*args))
    picture = UprightPicture(frame.picture, size)
    for box in boxes(*size, 60):
        assert np.array_equal(picture.read(box), whole_HWC[box.top : box.bottom, box.left : box.right]), box
    assert len(converted) == 61 and min(width * height for width, height in converted) <= 48 * 48


@pytest.mark.parametrize(("width", "height", "size"), [(94, 64, (188, 64)), (94, 64, (47, 32))])
def test_what_is_scaled_is_converted_once_as_a_whole(tmp_path, width, height, size, monkeypatch):
    frame = next(iter(read_frames(write_noise(tmp_path / "noise.mov", width, height))))
    whole_HWC = upright_rgb(frame.picture, size)
    calls = []
    monkeypatch.setattr(reader, "upright_rgb", lambda *args: calls.append(args) or upright_rgb(*args))
    picture = UprightPicture(frame.picture, size)
    for box in boxes(*size, 5):
        assert np.array_equal(picture.read(box), whole_HWC[box.top : box.bottom, box.left : box.right])
    assert len(calls) == 1


def test_odd_sides_and_other_colours_equal_the_whole_too(tmp_path):
    frame = next(iter(read_frames(write_noise(tmp_path / "noise.mov", 96, 64))))
    for form, width in (("yuv444p", 96), ("yuv420p10le", 96), ("yuv420p", 95)):
        picture = frame.picture.reformat(width=width, format=form)
        whole_HWC = upright_rgb(picture, (width, 64))
        for box in boxes(width, 64, 20):
            part_HWC = UprightPicture(picture, (width, 64)).read(box)
            assert np.array_equal(part_HWC, whole_HWC[box.top : box.bottom, box.left : box.right]), (form, box)
