"""Model folders: complete, truthful about licences and parents, there as a whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from exported import BUILD
from test_exports import MARLIN

import avff
from avff.config import load_config
from avff.exporting.folder import FILES
from avff.files import sha256_of
from avff.models.weights import load_weights

TRAINED_ON = [
    {
        "path": "/somewhere/shards/faces",
        "fingerprint": "0123456789abcdef" * 4,
        "num_samples": 1234,
        "splits": ["train"],
        "labels": "known",
        "min_seconds": 1.6,
    },
    {"path": "/somewhere/old.pth", "fingerprint": None},
]


def card_of(folder: Path) -> tuple[dict, str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def write_summary(run_dir: Path, split: str, sha256: str) -> None:
    auc = {"value": 0.9123, "low": 0.87, "high": 0.95, "reason": None}
    undefined = {"value": None, "low": None, "high": None, "reason": "no threshold from validation"}
    summary = {
        "dataset": "faces",
        "split": split,
        "checkpoint_sha256": [sha256],
        "overall": {"num_clips": 40, "num_fake": 30, "auc": auc, "balanced_accuracy": undefined},
        "undecided": {"count": 2},
        "hazards": ["Three people were trained on."],
    }
    (run_dir / "evaluation" / split).mkdir(parents=True)
    (run_dir / "evaluation" / split / "summary.json").write_text(json.dumps(summary))


def test_a_folder_is_complete_and_opens(run, make_run, tmp_path):
    run_dir, folder = make_run(finetune={"encoders": "lora"}), tmp_path / "detector"
    assert run("folder", run_dir, "--output", folder)[0] == 0
    assert {path.name for path in folder.iterdir()} == FILES
    model, original = avff.load_model(folder), avff.load_model(run_dir)
    assert load_config(folder / "config.yaml") == model.config == original.config
    assert (model.threshold, model.build) == (0.4, BUILD)
    clip = model.config.clip
    video_BTHWC = torch.randint(0, 256, (2, clip.num_frames, 48, 48, 3), dtype=torch.uint8)
    waveform_BN = torch.rand(2, clip.num_samples) - 0.5
    for one, other in zip(model(video_BTHWC, waveform_BN), original(video_BTHWC, waveform_BN), strict=True):
        assert torch.equal(one, other)


def test_preprocessing_says_how_inputs_are_made(run, make_run, tmp_path):
    folder = tmp_path / "detector"
    assert run("folder", make_run(clip={"mel_mean": -4.5}), "--output", folder)[0] == 0
    about = json.loads((folder / "preprocessing.json").read_text())
    model = avff.load_model(folder)
    assert about["clip"]["duration_seconds"] == 1.6 and about["clip"]["num_mel_frames"] == 256
    assert (about["build"]["crop_factor"], about["build"]["frames_per_second"]) == (1.3, 5.0)
    # By these values alone, a grey clip and silence come out as preprocessing makes them.
    grey = torch.full((1, 8, 48, 48, 3), 100, dtype=torch.uint8)
    made = model._inputs(grey, torch.zeros(1, model.config.clip.num_samples))
    by_hand = (100 * about["video"]["scale"] - torch.tensor(about["video"]["mean"])) / torch.tensor(
        about["video"]["std"]
    )
    assert torch.allclose(made.video_BTCHW[0, 0, :, 0, 0], by_hand, atol=1e-5)
    silence = (torch.tensor(2.0**-23).log() - about["audio"]["mean"]) / about["audio"]["std"]
    assert torch.allclose(made.mel_BMF, silence.expand_as(made.mel_BMF), atol=1e-5)


def test_the_card_tells_licences_parents_data_and_numbers(run, make_run, tmp_path):
    stage2 = {**MARLIN, "file": "stage2.safetensors", "what": "pretrain run 'stage2'", "sha256": "cd" * 32}
    run_dir = make_run(sidecar={"parents": [{**stage2, "parents": [MARLIN]}], "trained_on": TRAINED_ON})
    ema = run_dir / "checkpoints/step-8/ema.safetensors"
    write_summary(run_dir, "test", sha256_of(ema))
    write_summary(run_dir, "older", "ef" * 32)
    folder = tmp_path / "detector"
    assert run("folder", run_dir, "--output", folder)[0] == 0
    front, text = card_of(folder)
    assert (front["license"], front["license_name"]) == ("other", "apache-2.0-and-cc-by-nc-4.0")
    assert (front["library_name"], front["pipeline_tag"]) == ("avff", "video-classification")
    for expected in (
        "**Not for commercial use**",
        f"sha256 `{sha256_of(folder / 'model.safetensors')}`, was made from",
        f"- finetune run 'tiny' (`ema.safetensors`, sha256 `{sha256_of(ema)}`), licence: Apache-2.0, CC-BY-NC-4.0",
        f"  - pretrain run 'stage2' (`stage2.safetensors`, sha256 `{'cd' * 32}`",
        f"    - MARLIN (`marlin.pt`, sha256 `{'ab' * 32}`, from https://example.org/marlin), licence: CC-BY-NC-4.0",
        "- `faces`: 1,234 clips of split train, labels `known`, manifest sha256 `0123456789abcdef`",
        "- What `old.pth` was trained on is not recorded.",
        "auc 0.8100; threshold 0.4000",
        "on faces, split test: 40 clips, 30 of them fake, 2 undecided",
        "AUC 0.9123 (95 % interval 0.8700 to 0.9500)",
        "to know: Three people were trained on.",
        "a square of 1.3 times the longer side",
        'model = avff.load_model("path/to/this/folder")',
    ):
        assert expected in text
    for unwanted in ("split older", "/somewhere", "balanced accuracy", str(tmp_path)):
        assert unwanted not in text


def test_a_card_without_records_says_so(run, make_run, tmp_path):
    folder = tmp_path / "network"
    assert run("folder", make_run("pretrain", build=None, validation=None), "--output", folder)[0] == 0
    front, text = card_of(folder)
    assert front["license"] == "apache-2.0" and "pipeline_tag" not in front
    for expected in ("Not recorded in the checkpoint.", "No numbers are recorded", "without real/fake heads"):
        assert expected in text
    assert "commercial" not in text and "load_model" not in text


def test_the_three_lines_of_the_card_run(run, make_run, tmp_path, capsys, monkeypatch):
    from test_portable import write_clip

    folder = tmp_path / "detector"
    assert run("folder", make_run(), "--output", folder)[0] == 0
    code = card_of(folder)[1].split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    assert len(code.splitlines()) == 3
    write_clip(tmp_path / "face_crop.mp4")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "face_crop.mp4: " in capsys.readouterr().out


def test_what_is_there_is_replaced_only_when_told_and_only_a_model_folder(run, make_run, tmp_path):
    first, second, folder = make_run(name="first"), make_run(name="second", validation=None), tmp_path / "detector"
    assert run("folder", first, "--output", folder)[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, problem = run("folder", second, "--output", folder)
    assert code == 2 and "is there already; --overwrite replaces it" in problem
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "notes.txt").write_text("mine")
    code, _, problem = run("folder", second, "--output", folder, "--overwrite")
    assert code == 2 and "holds notes.txt, which no model folder does" in problem
    (folder / "notes.txt").unlink()
    assert run("folder", second, "--output", folder, "--overwrite")[0] == 0
    assert load_weights(folder / "model.safetensors")[1]["what"].startswith("classifier of finetune run 'second'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "runs"]


def test_what_a_killed_process_left_is_mended(run, make_run, tmp_path, caplog):
    run_dir, folder = make_run(), tmp_path / "detector"
    assert run("folder", run_dir, "--output", folder)[0] == 0
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder.rename(tmp_path / f".detector.{ended.pid}.old")  # killed between the two renames
    for process in (ended.pid, os.getppid()):  # and one that is still writing
        (tmp_path / f".detector.{process}.partial").mkdir()
    code, _, problem = run("folder", run_dir, "--output", folder)
    assert code == 2 and "is there already" in problem and avff.load_model(folder).threshold == 0.4
    assert "detector: given its name back" in caplog.text and f"{ended.pid}.partial: removed" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".detector.{os.getppid()}.partial", "detector", "runs"]


def test_a_clone_of_a_hub_is_replaced_and_stays_a_clone(run, make_run, tmp_path):
    folder = tmp_path / "detector"
    assert run("folder", make_run(name="first"), "--output", folder)[0] == 0
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("main")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert run("folder", make_run(name="second"), "--output", folder, "--overwrite")[0] == 0
    assert "second" in load_weights(folder / "model.safetensors")[1]["what"]
    assert (folder / ".git" / "HEAD").read_text() == "main"
    assert {path.name for path in folder.iterdir()} == {*FILES, ".git", ".gitattributes"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "runs"]


def test_a_folder_that_fails_half_way_is_not_there(run, make_run, tmp_path):
    run_dir, folder = make_run(), tmp_path / "detector"
    write_summary(run_dir, "test", "ab" * 32)
    (run_dir / "evaluation/test/summary.json").write_text("{")  # read for the card, after the weights are written
    code, _, problem = run("folder", run_dir, "--output", folder)
    assert code == 2 and "summary.json: not valid JSON" in problem
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
