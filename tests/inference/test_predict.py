"""`avff predict`: the same clips and scores as building and evaluating, reasons for what cannot be judged."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from avff import cli
from avff.build_config import BuildConfig, FaceConfig
from avff.building.build import build_shards
from avff.building.plan import plan_build
from avff.building.sources import read_sources
from avff.errors import CheckpointError, MediaError
from avff.evaluation.aggregate import probability
from avff.inference.evaluate import evaluate
from avff.inference.load import load_detector
from avff.inference.predict import predict_file
from avff.inference.report import as_json, as_text
from avff.inference.timeline import draw_timeline
from avff.media.synthetic import SplitPlan, generate_talking_heads


def evaluate_file(path, detector, tmp_path):
    """Rows of the file by way of make_shards and evaluate, by key."""
    build_shards(plan_build(read_sources(path, split="test"), tmp_path / "shards", detector.build))
    result = evaluate(detector, [tmp_path / "shards"], tmp_path / "out", num_workers=0, progress=False)
    return {row.key: row for row in result.rows}


def assert_equal_to_evaluation(prediction, rows):
    assert [segment.key for segment in prediction.segments] == list(rows)
    for segment in prediction.segments:
        row = rows[segment.key]
        assert segment.status == row.status
        if segment.score is not None:
            assert (segment.score.track, len(segment.windows)) == (row.track, row.num_windows)
            assert probability(segment.score.logits.overall) == pytest.approx(row.fake_probability, abs=1e-3)
            assert segment.score.logits.audio == pytest.approx(row.audio_fake_logit, abs=1e-3)


def test_predict_equals_building_and_evaluating(write_video, frame_detector, tmp_path):
    path = write_video(tmp_path / "odd name (1).mp4", seconds=5.8)
    prediction = predict_file(path, frame_detector)
    assert [(s.start_seconds, s.stop_seconds) for s in prediction.segments] == [(0, 2), (2, 4), (4, pytest.approx(5.8))]
    assert_equal_to_evaluation(prediction, evaluate_file(path, frame_detector, tmp_path))
    highest = max(probability(segment.score.logits.overall) for segment in prediction.segments)
    assert prediction.fake_probability == highest
    assert predict_file(path, frame_detector) == prediction


@pytest.mark.slow
def test_predict_equals_evaluating_with_faces_found(make_run, tmp_path):
    plan = {"test": SplitPlan(num_people=2, clips_per_person={"RVRA": 1})}
    generate_talking_heads(tmp_path / "heads", plan=plan, num_workers=0, progress=False)
    build = BuildConfig(side_pixels=96, faces=FaceConfig(detect_every_frames=10))
    detector = load_detector(str(make_run(build=build)), device="cpu")
    path = sorted((tmp_path / "heads/videos").glob("*.mp4"))[0]
    prediction = predict_file(path, detector)
    assert prediction.verdict in ("REAL", "FAKE") and prediction.score.track == 0
    (track,) = prediction.segments[0].tracks
    assert min(track.scores) >= 0.9
    (face,) = as_json(prediction)["segments"][0]["faces"]
    assert face == {"track": 0, "box": pytest.approx(np.mean(track.boxes, axis=0), abs=0.051)}
    assert_equal_to_evaluation(prediction, evaluate_file(path, detector, tmp_path))


@pytest.mark.parametrize(("threshold", "verdict"), [(0.0, "FAKE"), (1.0, "REAL")])
def test_the_checkpoints_threshold_decides(write_video, frame_detector, tmp_path, threshold, verdict):
    path = write_video(tmp_path / "x.mp4", seconds=2)
    prediction = predict_file(path, dataclasses.replace(frame_detector, threshold=threshold))
    assert (prediction.verdict, prediction.threshold, prediction.threshold_is_default) == (verdict, threshold, False)
    assert f"x.mp4: {verdict}" in as_text(prediction) and "chosen on validation" in as_text(prediction)


def test_a_checkpoint_without_threshold_says_that_it_uses_the_default(write_video, frame_detector, tmp_path):
    path = write_video(tmp_path / "x.mp4", seconds=2)
    prediction = predict_file(path, dataclasses.replace(frame_detector, threshold=None))
    assert prediction.threshold == 0.5 and "default, the checkpoint holds none" in as_text(prediction)


def test_text_json_and_picture_show_every_window(write_video, frame_detector, tmp_path):
    prediction = predict_file(write_video(tmp_path / "x.mp4", seconds=4), frame_detector)
    report = json.loads(json.dumps(as_json(prediction), allow_nan=False))
    windows = [window for segment in report["segments"] for window in segment["windows"]]
    assert [(w["start_seconds"], w["stop_seconds"]) for w in windows] == [
        (s.start_seconds + w.start_seconds, s.start_seconds + w.start_seconds + 1.6)
        for s in prediction.segments
        for w in s.windows
    ]
    assert report["fake_probability"] == prediction.fake_probability
    text = as_text(prediction)
    assert text.count("frame  ") == len(windows)
    assert text.count("<- decides") == 1
    picture = np.asarray(Image.open(io.BytesIO(draw_timeline(prediction))).convert("RGB"))
    assert picture.shape[1] > 1000 and picture.std() > 20


@pytest.mark.parametrize(
    ("seconds", "sound", "reason", "words"),
    [(4, False, "NO_AUDIO", "there is no sound"), (1, True, "TOO_SHORT", "do not last one window")],
)
def test_what_cannot_be_judged_is_undecided(write_video, frame_detector, tmp_path, seconds, sound, reason, words):
    prediction = predict_file(write_video(tmp_path / "x.mp4", seconds, sound), frame_detector)
    assert (prediction.verdict, prediction.reason, prediction.fake_probability) == ("UNDECIDED", reason, None)
    assert f"UNDECIDED: {reason} (" in as_text(prediction) and words in as_text(prediction)
    assert as_json(prediction)["fake_probability"] is None
    assert Image.open(io.BytesIO(draw_timeline(prediction))).size[0] > 1000


@pytest.mark.slow
def test_no_face_is_undecided(write_video, make_run, tmp_path):
    detector = load_detector(str(make_run(build=BuildConfig(min_seconds=1.6))), device="cpu")
    prediction = predict_file(write_video(tmp_path / "x.mp4", seconds=2), detector)
    assert (prediction.verdict, prediction.reason) == ("UNDECIDED", "NO_FACE")


def test_an_undecodable_file_is_undecided_with_the_decoders_reason(frame_detector, tmp_path):
    (tmp_path / "torn.mp4").write_bytes(b"\0" * 5000)
    prediction = predict_file(tmp_path / "torn.mp4", frame_detector)
    assert prediction.verdict == "UNDECIDED" and prediction.reason.startswith("UNDECODABLE: ")
    assert Image.open(io.BytesIO(draw_timeline(prediction))).size[0] > 1000


def test_the_command_ends_with_2_for_a_file_that_it_cannot_decode(make_run, write_video, tmp_path, capsys):
    checkpoint = str(make_run(build=BuildConfig(mode="frame", segment_seconds=2.0, min_seconds=1.6)))
    (tmp_path / "torn.mp4").write_bytes(b"\0" * 5000)
    write_video(tmp_path / "mute.mp4", seconds=2, sound=False)
    for name, code in (("torn.mp4", 2), ("mute.mp4", 0)):
        assert cli.main(["predict", str(tmp_path / name), "--checkpoint", checkpoint, "--device", "cpu"]) == code
        assert f"{name}: UNDECIDED" in capsys.readouterr().out
        assert json.loads((tmp_path / f"{name}.avff.json").read_text())["verdict"] == "UNDECIDED"


def test_a_missing_file_and_the_users_boxes_are_errors(frame_detector, write_video, tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        predict_file(tmp_path / "gone.mp4", frame_detector)
    boxes = dataclasses.replace(frame_detector, build=BuildConfig(mode="boxes"))
    with pytest.raises(CheckpointError, match="cut with the user's own boxes"):
        predict_file(write_video(tmp_path / "x.mp4"), boxes)


@pytest.mark.slow
@pytest.mark.real_clips
def test_the_command_gives_every_real_clip_a_verdict_or_a_reason(real_clips, make_run, tmp_path):
    # Half as many looks for faces as by default: the clips' faces are large and stay where they are.
    build = BuildConfig(min_seconds=1.6, side_pixels=64, faces=FaceConfig(detect_every_frames=10))
    checkpoint = str(make_run(build=build))
    found = {}
    for path in sorted(path for path in real_clips.iterdir() if path.suffix in (".mp4", ".mov")):
        output = tmp_path / path.stem
        command = ["predict", str(path), "--checkpoint", checkpoint, "--output", str(output), "--device", "cpu"]
        assert cli.main(command) == (2 if path.stem == "decord_corrupted" else 0), path.name
        report = json.loads(output.with_suffix(".json").read_text())
        assert Image.open(output.with_suffix(".png")).size[0] > 1000
        assert report["verdict"] in ("REAL", "FAKE", "UNDECIDED")
        undecided = report["verdict"] == "UNDECIDED"
        assert (report["fake_probability"] is None) == undecided == bool(report["reason"])
        found[path.stem] = report["reason"] or "JUDGED"
    undecodable = found.pop("decord_corrupted")
    assert undecodable.startswith("UNDECODABLE: ")
    assert found == {
        **{f"marlin_video0{number}": "JUDGED" for number in (1, 3, 5)},
        "avad_test": "JUDGED",
        "genconvit_sample_2": "JUDGED",
        "mintime_fake_2_faces_2": "NO_AUDIO",
        "torchcodec_nasa_13013": "NO_FACE",
        "energon_sync_test": "NO_FACE",
        "decord_rotated_90": "NO_AUDIO, NO_FACE, TOO_SHORT",
    }
