"""Folders: one row per file, continued where it stopped, in both formats."""

import csv
import dataclasses
import os

import pytest

from avff.errors import EvaluationError, MediaError
from avff.inference import predict_many
from avff.inference.predict_many import predict_folder


@pytest.fixture
def folder(write_video, tmp_path):
    path = tmp_path / "videos"
    (path / "sub").mkdir(parents=True)
    write_video(path / "b.mp4", seconds=2)
    write_video(path / "sub/a, mute.mp4", seconds=2, sound=False)
    (path / "a_torn.mp4").write_bytes(b"not a video")
    (path / "notes.txt").write_text("left alone")
    return path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_has_a_row_and_a_bad_one_a_reason(folder, frame_detector, tmp_path):
    rows = predict_folder(folder, frame_detector, tmp_path / "out.csv", progress=False)
    assert read(tmp_path / "out.csv") == rows
    by_name = {row["video_name"]: row for row in rows}
    assert list(by_name) == ["a_torn.mp4", "b.mp4", "sub/a, mute.mp4"]
    assert by_name["a_torn.mp4"]["verdict"] == "UNDECIDED" and "UNDECODABLE" in by_name["a_torn.mp4"]["reason"]
    assert by_name["sub/a, mute.mp4"]["reason"] == "NO_AUDIO" and by_name["sub/a, mute.mp4"]["fake_probability"] == ""
    assert by_name["b.mp4"]["verdict"] in ("REAL", "FAKE") and by_name["b.mp4"]["track"] == "frame"


def test_an_interrupted_folder_continues_without_reading_files_again(folder, frame_detector, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    whole = predict_folder(folder, frame_detector, output, progress=False)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:3]) + lines[3][:10])
    read_again = []
    original = predict_many.predict_files
    monkeypatch.setattr(
        predict_many,
        "predict_files",
        lambda paths, *rest, **named: read_again.extend(path.name for path in paths) or original(paths, *rest, **named),
    )
    continued = predict_folder(folder, frame_detector, output, progress=False)
    assert read_again == ["a, mute.mp4"]
    timeless = [[{**row, "seconds_spent": ""} for row in rows] for rows in (whole, continued, read(output))]
    assert timeless[0] == timeless[1] == timeless[2]


def test_names_that_are_not_unicode_are_kept_as_they_are(write_video, frame_detector, tmp_path):
    folder, output = tmp_path / "videos", tmp_path / "out.csv"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.mp4")  # Latin-1
    (folder / name).write_bytes(b"not a video")
    for _ in range(2):  # the second reads the first's table
        rows = predict_folder(folder, frame_detector, output, format="open-avff", progress=False)
        assert [row["video_name"] for row in rows] == [name]
    assert output.read_bytes() == b"video_name,y_pred\ncaf\xe9.mp4,\n"


def test_a_log_file_gets_lines_instead_of_a_progress_bar(folder, frame_detector, tmp_path, capsys, caplog):
    with caplog.at_level("INFO", "avff.progress"):
        predict_folder(folder, frame_detector, tmp_path / "out.csv", progress=True)
    assert capsys.readouterr().err == ""
    assert caplog.messages[0].startswith("predict: 0 of 3 files") and caplog.messages[-1].startswith("predict: 3 of 3")


def test_open_avff_format(folder, frame_detector, tmp_path):
    rows = predict_folder(folder, frame_detector, tmp_path / "out.csv", format="open-avff", progress=False)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    scored = next(row for row in rows if row["video_name"] == "b.mp4")
    assert lines == ["video_name,y_pred", "a_torn.mp4,", f"b.mp4,{scored['fake_probability']}", '"sub/a, mute.mp4",']
    assert read(tmp_path / "out.full.csv") == rows


def test_open_avff_format_replaces_no_other_table(folder, frame_detector, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("video_name,verdict\na.mp4,REAL\n")
    with pytest.raises(EvaluationError, match="its header is 'video_name,verdict', not 'video_name,y_pred'"):
        predict_folder(folder, frame_detector, output, format="open-avff", progress=False)
    assert output.read_text() == "video_name,verdict\na.mp4,REAL\n"


def test_a_table_of_another_checkpoint_or_form_is_refused(folder, frame_detector, tmp_path):
    output = tmp_path / "out.csv"
    predict_folder(folder, frame_detector, output, progress=False)
    other = dataclasses.replace(frame_detector, checkpoint_sha256="ab" * 32)
    with pytest.raises(EvaluationError, match=r"was written by checkpoint \w{12}, this one is abababababab"):
        predict_folder(folder, other, output, progress=False)
    output.write_text("video_name,target\nx.mp4,0\n")
    with pytest.raises(EvaluationError, match="not that of a table of predictions"):
        predict_folder(folder, frame_detector, output, progress=False)


def test_an_empty_or_missing_folder_is_an_error(frame_detector, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="no media file in it"):
        predict_folder(tmp_path / "empty", frame_detector, tmp_path / "out.csv")
    with pytest.raises(MediaError, match="no such file or folder"):
        predict_folder(tmp_path / "gone", frame_detector, tmp_path / "out.csv")
