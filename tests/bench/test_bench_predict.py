"""tools/bench.py predict: what it measures and writes, not how long it takes."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench

from avff.bench.generated_head import generated_head
from avff.media.reader import probe, read_frames

pytestmark = pytest.mark.slow


def test_every_phase_of_a_generated_head_is_a_row(tmp_path, capsys):
    options = ["--seconds", "4", "--height", "180", "--size", "tiny", "--windows", "1", "--profile", "pretrain"]
    assert bench.main(["predict", "--folder", str(tmp_path), "--workers", "2", "--device", "cpu", *options]) == 0
    report = json.loads((tmp_path / "predict.json").read_text())
    (path,) = report["files"]
    info = probe(Path(path))
    assert (info.width, info.height, sum(1 for _ in read_frames(Path(path)))) == (320, 180, 100)
    assert report["video_seconds"] == pytest.approx(4) and info.audio_start_seconds is not None
    rows = {(row["phase"], row["workers"]): row for row in report["rows"]}
    phases = ("decode", "faces", "decode+faces", "cut_encode", "windows", "prepare", "model")
    assert list(rows) == [*((phase, 0) for phase in phases[:-1]), ("prepare", 2), ("model", 0)]
    for row in rows.values():
        assert row["video_seconds_per_second"] == pytest.approx(4 / row["wall_seconds"])
    assert all(rows[phase, 0]["cpu_seconds"] > 0 for phase in ("decode", "decode+faces", "prepare", "model"))
    assert rows["prepare", 2]["cpu_seconds"] > 0.1  # of the worker, which has ended
    speed = 2 * rows["decode+faces", 0]["video_seconds_per_cpu_second"]
    said = capsys.readouterr().out
    assert f"2 cores: {speed:.3g} times real time (aim: above 1 at 720p; measured here: 180p)" in said
    assert f"prepare on 2 cores: {rows['prepare', 2]['video_seconds_per_second']:.2f} times real time" in said


def test_a_folder_of_ones_own_and_a_missing_one(tmp_path, capsys):
    assert bench.main(["predict", "--input", str(tmp_path / "none"), "--folder", str(tmp_path)]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("no media")
    assert bench.main(["predict", "--input", str(tmp_path), "--folder", str(tmp_path)]) == 2
    assert "no media file; suffixes are" in capsys.readouterr().err


def test_a_file_that_does_not_decode_is_left_out_and_named(tmp_path, capsys):
    media = tmp_path / "media"
    good = generated_head(media, height=180, seconds=4.0)
    (media / "broken.mp4").write_bytes(good.read_bytes()[:2000])
    options = [
        "--folder",
        str(tmp_path),
        "--workers",
        "0",
        "--device",
        "cpu",
        "--size",
        "tiny",
        "--profile",
        "pretrain",
    ]
    assert bench.main(["predict", "--input", str(media), *options]) == 0
    said = capsys.readouterr().out
    assert f"1 of 2 files left out:\n{media / 'broken.mp4'}: UNDECODABLE: " in said
    report = json.loads((tmp_path / "predict.json").read_text())
    assert (report["files"], report["skipped_files"]) == ([str(good)], [str(media / "broken.mp4")])
    good.unlink()
    assert bench.main(["predict", "--input", str(media), *options]) == 2
    assert f"no file can be prepared; name others with --input\n{media / 'broken.mp4'}: UN" in capsys.readouterr().err
