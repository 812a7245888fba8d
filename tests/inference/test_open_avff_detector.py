"""Open-AVFF's published classifier under `avff predict` and `avff evaluate`."""

import csv
import io
import json

import decord
import numpy as np
import pytest
import torch
from media_files import noise, steady, write_media
from open_avff_stage3 import SIZE, write_stage_3
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from avff import cli
from avff.errors import CheckpointError
from avff.evaluation.rows import read_rows
from avff.inference.evaluate import evaluate
from avff.inference.load import load_detector
from avff.inference.open_avff_view import spread_frames, whole_mel
from avff.inference.predict import predict_file
from avff.inference.report import as_json, as_text
from avff.inference.timeline import draw_timeline
from avff.media.whole import read_native_sound
from avff.models.detectors.open_avff import OpenAvffClassifier, OpenAvffPretrain


@pytest.fixture(scope="module")
def stage_3(tmp_path_factory):
    return write_stage_3(tmp_path_factory.mktemp("open_avff") / "stage3.pth")


@pytest.fixture(scope="module")
def detector(stage_3):
    return load_detector(str(stage_3), device="cpu")


def stripes(count, shift):
    y, x = np.mgrid[:240, :300]
    waves = [np.stack([np.sin((x + 7 * i + shift) / (9 + 3 * c) + y / 40) for c in range(3)], -1) for i in range(count)]
    return (128 + 100 * np.stack(waves)).astype(np.uint8)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Three files of different length, colour and loudness, and two that cannot be judged."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(3):
        sound = noise(0.8 + 0.4 * number, rate_hz=44100, channels=2)
        sound = sound._replace(samples_CN=sound.samples_CN * 0.02 * 30**number / 30)
        write_media(folder / f"clip{number}.mov", [steady(stripes(20 + 10 * number, 60 * number), 25)], [sound])
    write_media(folder / "mute.mp4", [steady(stripes(9, 0), 25)])
    (folder / "torn.mp4").write_bytes(b"\0" * 5000)
    return folder


@torch.inference_mode()
def published_probability(path, stage_3, transform):
    """What Open-AVFF's evaluation computes of a file that is alone in its batch, dropout aside."""
    weights = {name.removeprefix("module."): tensor for name, tensor in torch.load(stage_3).items()}
    network = OpenAvffClassifier(SIZE, attend_over_batch=True).eval()
    network.load_state_dict(weights)
    reader = decord.VideoReader(str(path))
    steps = transforms.Compose(
        [
            transforms.ToPILImage(),
            transform,
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    frames = torch.stack([steps(reader[int(index)].asnumpy()) for index in np.linspace(0, len(reader) - 1, 16)])
    sound = read_native_sound(path)
    mel_MF = whole_mel(sound.samples_CN, sound.rate_hz)  # compared with torchaudio in test_open_avff_view
    return torch.sigmoid(network(mel_MF[None], frames.permute(1, 0, 2, 3)[None]))[0, 0].item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "transform"), [("", transforms.CenterCrop(224)), (":resize", transforms.Resize((224, 224)))]
)
def test_a_file_scores_as_published(stage_3, media, suffix, transform):
    prediction = predict_file(media / "clip1.mov", load_detector(f"{stage_3}{suffix}", device="cpu"))
    expected = published_probability(media / "clip1.mov", stage_3, transform)
    assert prediction.fake_probability == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_files_score_does_not_depend_on_its_batch(detector, media):
    clips = [next(iter(detector.read_file(media / f"clip{number}.mov"))).windows[0] for number in range(3)]
    alone = [score.logits for score in detector.score(clips, batch_size=1)]
    together = [score.logits for score in detector.score(clips[::-1], batch_size=3)][::-1]
    assert [one.overall for one in alone] == pytest.approx([one.overall for one in together], abs=1e-6)
    assert np.ptp([one.overall for one in alone]) > 1e-3, "different files score differently"
    assert {(one.video, one.audio) for one in alone} == {(None, None)}


def test_text_json_and_picture_do_without_heads(detector, media):
    prediction = predict_file(media / "clip2.mov", detector)
    assert prediction.verdict in ("REAL", "FAKE") and prediction.threshold_is_default
    text = as_text(prediction)
    assert "no heads for picture and sound" in text and "video head" not in text
    assert "0.00-   1.59 s  frame" in text
    report = json.loads(json.dumps(as_json(prediction), allow_nan=False))
    (window,) = report["segments"][0]["windows"]
    assert window["fake_probability"] == prediction.fake_probability and window["video_fake_probability"] is None
    assert np.asarray(Image.open(io.BytesIO(draw_timeline(prediction)))).std() > 20


def test_what_it_cannot_judge_is_undecided_with_a_reason(detector, media, tmp_path):
    assert predict_file(media / "mute.mp4", detector).reason == "NO_AUDIO"
    assert predict_file(media / "torn.mp4", detector).reason.startswith("UNDECODABLE: ")
    path = write_media(tmp_path / "blip.mov", [steady(stripes(2, 0), 25)], [noise(0.02)])
    prediction = predict_file(path, detector)
    assert (prediction.verdict, prediction.reason, prediction.fake_probability) == ("UNDECIDED", "TOO_SHORT", None)


@pytest.mark.slow
def test_a_folder_in_the_published_columns(stage_3, media, tmp_path, capsys):
    output = tmp_path / "prediction.csv"
    command = ["predict", str(media), "--checkpoint", str(stage_3), "--format", "open-avff", "--device", "cpu"]
    assert cli.main([*command, "--output", str(output)]) == 0
    assert "5 files" in capsys.readouterr().out
    rows = list(csv.DictReader(output.open(newline="")))
    assert [row["video_name"] for row in rows] == [f"clip{i}.mov" for i in range(3)] + ["mute.mp4", "torn.mp4"]
    assert [bool(row["y_pred"]) for row in rows] == [True] * 3 + [False] * 2
    full = {row["video_name"]: row for row in csv.DictReader((tmp_path / "prediction.full.csv").open(newline=""))}
    assert full["clip0.mov"]["video_fake_probability"] == "" and full["mute.mp4"]["reason"] == "NO_AUDIO"


@pytest.mark.slow
def test_evaluating_shards_says_that_they_are_not_the_files(stage_3, make_sample, write_directory, tmp_path, capsys):
    samples = [make_sample(key, split="test", is_fake=fake, group_ids=[key]) for key, fake in (("r", 0), ("f", 1))]
    write_directory(tmp_path / "shards", [*samples, make_sample("mute", split="test", status=["NO_AUDIO"])])
    command = ["evaluate", "--checkpoint", str(stage_3), "--shards", str(tmp_path / "shards"), "--device", "cpu"]
    assert cli.main([*command, "--output", str(tmp_path / "out"), "--num-workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "AUC video head       none: the detector has no such head" in printed
    assert "hold sound at 16 kHz" in printed and "nobody checked for the same people" in printed
    rows = read_rows(tmp_path / "out/rows.jsonl")
    assert rows == read_rows(tmp_path / "out/rows.csv")
    assert [(row.key, row.status, row.num_windows) for row in rows] == [
        ("r", ["OK"], 1),
        ("f", ["OK"], 1),
        ("mute", ["NO_AUDIO"], 0),
    ]
    assert {(row.label, row.video_fake_logit, row.predicted) for row in rows} == {("open-avff (stage3)", None, None)}
    assert all(0 < row.fake_probability < 1 and row.leading_silence_seconds is not None for row in rows[:2])
    page = (tmp_path / "out/page.html").read_text()
    assert "the detector has no such head" in page and "each clip as a batch of one" in page
    again = evaluate(
        load_detector(f"{stage_3}:resize", device="cpu"),
        [tmp_path / "shards"],
        tmp_path / "resize",
        num_workers=0,
        compare=[tmp_path / "out/rows.jsonl"],
        progress=False,
    )
    assert again.summary["run"] == "stage3_resize" and "open-avff (stage3)" in again.summary["differences"]


def test_files_that_do_not_judge_are_refused_with_the_way_on(stage_3, tiny_config, tmp_path):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in OpenAvffPretrain(SIZE).state_dict().items()}
    stage_1 = tmp_path / "stage1.pth"
    torch.save({f"module.{name}": torch.zeros(shape) for name, shape in shapes.items()}, stage_1)
    with pytest.raises(CheckpointError, match=r"stage 1 or 2, which has no real/fake head.*adapt_weights\.py --from"):
        load_detector(str(stage_1), device="cpu")
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: its keys are of no known source .*some\.weight \[3\]"):
        load_detector(str(tmp_path / "other.pth"), device="cpu")
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        load_detector(str(tmp_path / "gone.pth:resize"), device="cpu")
    with pytest.raises(CheckpointError, match=r"is a published file, .* leave CONFIG out"):
        load_detector(str(stage_3), config=tiny_config("finetune"), device="cpu")
    weights = {name.removeprefix("module."): tensor for name, tensor in torch.load(stage_3).items()}
    weights["mlp_head.fc2.bias"] = torch.zeros(7)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: key mlp_head\.fc2\.bias has shape \[7\], .* \[1024\]"):
        load_detector(str(tmp_path / "odd.pth"), device="cpu")


def test_a_bare_safetensors_file_is_read_too(stage_3, tmp_path):
    weights = torch.load(stage_3)
    save_file(weights, tmp_path / "stage3.safetensors")
    assert load_detector(str(tmp_path / "stage3.safetensors"), device="cpu").name == "open-avff"
    save_file({"own.weight": torch.zeros(2)}, tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match=r"own\.json is missing beside it; it says what the weights are"):
        load_detector(str(tmp_path / "own.safetensors"), device="cpu")


def test_baselines_need_a_config(stage_3, shard_directory, capsys):
    command = ["evaluate", "--checkpoint", str(stage_3), "--shards", str(shard_directory.path), "--baselines"]
    assert cli.main([*command, "--device", "cpu"]) == 2
    assert "a published file has not" in capsys.readouterr().err


def test_frames_of_a_file_are_those_of_its_evaluation(detector, media):
    (part,) = detector.read_file(media / "clip0.mov")
    reader = decord.VideoReader(str(media / "clip0.mov"))
    frames = np.stack([reader[index].asnumpy()[8:232, 38:262] for index in spread_frames(len(reader)).tolist()])
    assert np.array_equal(part.windows[0].video_THWC, frames)
