"""The user's own face boxes."""

import numpy as np
import pytest

from avff.errors import MediaError
from avff.media.boxes import box_paths, load_boxes

HEADER = "video_name,time_seconds,track,x0,y0,x1,y1\n"


def test_tracks_are_interpolated_between_rows_and_split_at_gaps(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(
        HEADER + "a.mp4,0.0,3,0,0,10,10\na.mp4,1.0,3,10,0,20,10\na.mp4,5.0,3,50,0,60,10\nb.mp4,0,1,0,0,4,4\n"
    )
    boxes = load_boxes(path)
    assert set(boxes) == {"a.mp4", "b.mp4"}
    first, second = box_paths(boxes["a.mp4"], np.arange(0, 8, 0.5))
    assert (first.first_frame, first.num_frames, first.identity) == (0, 3, 3)
    assert first.boxes_T4[:, 0].tolist() == [0, 5, 10]
    assert first.detected_T.tolist() == [True, False, True]
    assert (second.first_frame, second.num_frames) == (10, 1)


def test_wrong_header_and_wrong_rows_are_named(tmp_path):
    path = tmp_path / "boxes.csv"
    with pytest.raises(MediaError, match=r"boxes\.csv: no such box file"):
        load_boxes(path)
    path.write_text("video,x\n")
    with pytest.raises(MediaError, match=r"boxes\.csv: the header is .*write video_name,time_seconds,track"):
        load_boxes(path)
    path.write_text(HEADER + "a.mp4,0.0,1,9,0,3,4\na.mp4,zero,1,0,0,3,4\n")
    with pytest.raises(MediaError, match=r"line 2: .*x0 < x1.*line 3: could not convert"):
        load_boxes(path)
