"""Workers and batches have no effect on scores, and no file ends a run."""

import contextlib
import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avff.build_config import BuildConfig, FaceConfig
from avff.inference.avff_detector import AvffDetector
from avff.inference.load import load_detector
from avff.inference.predict import predict_file, predict_files
from avff.inference.predict_many import predict_folder
from avff.media.synthetic import SplitPlan, generate_talking_heads

LOGIT_TOLERANCE = 1e-5
"""Between batches of other sizes, whose products BLAS adds up in another order."""


class FaultyDetector(AvffDetector):
    """Ends its process at the second part of `crash.mp4`, and never returns from that of `hang.mp4`."""

    def read_file(self, path, *, num_threads=0):
        for number, part in enumerate(super().read_file(path, num_threads=num_threads)):
            if number == 1 and path.stem == "crash":
                os._exit(7)
            if number == 1 and path.stem == "hang":
                time.sleep(600)
            yield part


def faulty(detector):
    values = {field.name: getattr(detector, field.name) for field in dataclasses.fields(detector)}
    return FaultyDetector(**values)


@pytest.fixture
def paths(write_video, tmp_path) -> list[Path]:
    folder = tmp_path / "videos"
    folder.mkdir()
    made = [write_video(folder / f"{n}.mp4", seconds=seconds) for n, seconds in enumerate((4.2, 2, 6))]
    (folder / "torn.mp4").write_bytes(b"not a video")
    return [*made, folder / "torn.mp4", write_video(folder / "mute.mp4", 2, sound=False)]


def assert_same(predictions, others):
    for one, other in zip(predictions, others, strict=True):
        assert (one.path, one.verdict, one.reason) == (other.path, other.verdict, other.reason)
        for a, b in zip(one.segments, other.segments, strict=True):
            assert (a.key, a.status, a.tracks, len(a.windows)) == (b.key, b.status, b.tracks, len(b.windows))
            for x, y in zip(a.windows, b.windows, strict=True):
                assert x[:3] == y[:3] and x.logits == pytest.approx(y.logits, abs=LOGIT_TOLERANCE)


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 3), (1, 8), (2, 1), (5, 100)])
def test_workers_and_batches_change_nothing(paths, frame_detector, num_workers, batch_size):
    alone = [predict_file(path, frame_detector) for path in paths]
    assert {p.verdict for p in alone} >= {"UNDECIDED"} and sum(len(s.windows) for p in alone for s in p.segments) > 8
    timed = list(predict_files(paths, frame_detector, num_workers=num_workers, batch_size=batch_size))
    found = {prediction.path: prediction for prediction, _ in timed}
    assert len(timed) == len(paths)
    assert_same([found[path] for path in paths], alone)
    assert all(seconds > 0 for _, seconds in timed)


def test_equal_batches_give_equal_bits_with_any_number_of_workers(paths, frame_detector):
    first = predict_file(paths[2], frame_detector)
    assert predict_file(paths[2], frame_detector, num_workers=3) == first


def test_a_file_that_is_gone_when_its_turn_comes_is_undecided(paths, frame_detector):
    gone = paths[0].with_name("gone.mp4")
    found = {p.path: p for p, _ in predict_files([gone, paths[1]], frame_detector)}
    assert found[gone].verdict == "UNDECIDED" and found[gone].reason.startswith("MISSING: ")
    assert found[paths[1]] == predict_file(paths[1], frame_detector)


def test_a_batch_holds_windows_of_several_files(paths, frame_detector):
    batches = []

    class Watched(AvffDetector):
        def score(self, clips, *, batch_size=8):
            batches.append([clip.key for clip in clips])
            return super().score(clips, batch_size=batch_size)

    values = {field.name: getattr(frame_detector, field.name) for field in dataclasses.fields(frame_detector)}
    list(predict_files(paths, Watched(**values), num_workers=2, batch_size=4))
    assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1) and len(batches) > 1
    assert any(len({key.rsplit("_", 1)[0] for key in batch}) > 1 for batch in batches)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("crash", "ended with code 7"), ("hang", "took longer than 2 s")])
def test_a_file_that_crashes_or_hangs_is_one_row(paths, frame_detector, tmp_path, name, words):
    shutil.copy(paths[0], paths[0].with_name(f"{name}.mp4"))
    options = {"num_workers": 2, "timeout_seconds": 2.0, "progress": False}
    rows = predict_folder(paths[0].parent, faulty(frame_detector), tmp_path / "out.csv", **options)
    by_name = {row["video_name"]: row for row in rows}
    assert list(by_name) == sorted(path.name for path in [*paths, Path(f"{name}.mp4")])
    row = by_name.pop(f"{name}.mp4")
    assert row["verdict"] == "UNDECIDED" and row["reason"].startswith("UNREADABLE: ")
    assert f"{words} in 2 attempts" in row["reason"]
    alone = predict_folder(paths[0].parent, frame_detector, tmp_path / "alone.csv", progress=False)
    for other in alone:
        if other["video_name"] in by_name:
            assert by_name[other["video_name"]]["verdict"] == other["verdict"]


class SlowFirstDetector(AvffDetector):
    """Takes long for each part of `slow.mp4`."""

    def read_file(self, path, *, num_threads=0):
        for part in super().read_file(path, num_threads=num_threads):
            time.sleep(0.8 if path.stem == "slow" else 0.0)
            yield part


@pytest.mark.slow
def test_a_slow_file_does_not_hold_up_the_rows_of_others(write_video, frame_detector, tmp_path):
    folder, output = tmp_path / "videos", tmp_path / "out.csv"
    folder.mkdir()
    names = [f"{letter}.mp4" for letter in "abc"]
    for name in names:
        write_video(folder / name, seconds=2)
    write_video(folder / "slow.mp4", seconds=6)
    values = {field.name: getattr(frame_detector, field.name) for field in dataclasses.fields(frame_detector)}
    paths = [folder / "slow.mp4", *(folder / name for name in names)]
    order = [p.path.name for p, _ in predict_files(paths, SlowFirstDetector(**values), num_workers=2, batch_size=1)]
    assert order[-1] == "slow.mp4" and sorted(order[:-1]) == names
    rows = predict_folder(folder, SlowFirstDetector(**values), output, num_workers=2, batch_size=1, progress=False)
    assert [row["video_name"] for row in rows] == [*names, "slow.mp4"]
    with output.open(newline="") as file:
        assert list(csv.DictReader(file)) == rows


def running_with(word) -> list[str]:
    """Processes, forked ones too, whose command line has a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if str(word).encode() in path.read_bytes() else []
    return found


@pytest.mark.slow
def test_an_interrupted_command_keeps_its_rows_leaves_no_process_and_goes_on(make_run, write_video, tmp_path):
    run = make_run(build=BuildConfig(mode="frame", segment_seconds=2.0, min_seconds=1.6))
    folder, output = tmp_path / "videos", tmp_path / "out.csv"
    folder.mkdir()
    for number in range(12):
        write_video(folder / f"{number:02d}.mp4", seconds=2)
    words = ["predict", str(folder), "--checkpoint", str(run), "--output", str(output), "--device", "cpu"]
    command = [sys.executable, "-m", "avff", *words, "--workers", "2", "--batch-size", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not output.is_file() or output.read_text().count("\n") < 3):
        time.sleep(0.02)
    assert len(running_with(output)) == 3
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; the same command goes on" in said and "Traceback" not in said
    assert not running_with(output)
    kept = output.read_text().splitlines()
    assert 3 <= len(kept) < 13
    subprocess.run(command, check=True, capture_output=True)
    with output.open(newline="") as file:
        assert [row["video_name"] for row in csv.DictReader(file)] == [f"{n:02d}.mp4" for n in range(12)]
    assert set(kept) <= set(output.read_text().splitlines())


@pytest.mark.slow
def test_one_file_with_faces_is_the_same_with_threads_that_help(make_run, tmp_path):
    plan = {"test": SplitPlan(num_people=2, clips_per_person={"RVRA": 1})}
    generate_talking_heads(tmp_path / "heads", plan=plan, num_workers=0, progress=False)
    build = BuildConfig(side_pixels=96, min_seconds=1.6, segment_seconds=2.0, faces=FaceConfig(detect_every_frames=10))
    detector = load_detector(str(make_run(build=build)), device="cpu")
    path = sorted((tmp_path / "heads/videos").glob("*.mp4"))[0]
    alone = predict_file(path, detector)
    assert alone.verdict != "UNDECIDED" and alone.segments[0].tracks
    assert predict_file(path, detector, num_workers=3) == alone
