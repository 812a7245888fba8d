"""Checkpoint to scores: determinism, batches, and what is refused."""

import dataclasses

import pytest
import torch

import avff
from avff.build_config import BuildConfig
from avff.checkpoints import read_checkpoint
from avff.cli import main
from avff.data.shards import read_sample
from avff.errors import CheckpointError, ConfigError
from avff.exporting.folder import write_folder
from avff.files import sha256_of
from avff.inference.load import load_detector
from avff.models.build import build_model
from avff.models.weights import load_weights, make_sidecar, save_weights
from avff.run_folder import resolve_checkpoint
from avff.strict_yaml import to_dict


@pytest.fixture
def windows(shard_directory, make_run):
    detector = load_detector(str(make_run()), device="cpu")
    clips = [
        c for row in shard_directory.rows[:5] for c in detector.view.evaluation_clips(read_sample(shard_directory, row))
    ]
    return detector, clips


def test_a_window_scores_the_same_in_any_batch_and_twice(windows):
    detector, clips = windows
    assert len(clips) > 5
    alone = detector.score(clips, batch_size=1)
    assert detector.score(clips, batch_size=1) == alone
    together = detector.score(clips[::-1], batch_size=4)[::-1]
    for one, other in zip(alone, together, strict=True):
        assert one[:3] == other[:3]
        assert one.logits == pytest.approx(other.logits, abs=1e-5)
    assert len({score.logits for score in alone}) == len(alone), "different clips score differently"


def test_detector_knows_its_checkpoint(make_run, shard_directory):
    run = make_run(threshold=0.37)
    detector = load_detector(f"{run}:last", device="cpu")
    assert (detector.threshold, detector.step, detector.run, detector.run_dir) == (0.37, 7, "tiny", run)
    assert detector.checkpoint_sha256 == sha256_of(run / "checkpoints/step-7/ema.safetensors")
    assert to_dict(detector.build) == shard_directory.manifest["build"]
    assert not detector.model.training


def test_a_bare_weight_file_is_a_detector_too(make_run, shard_directory):
    run = make_run(threshold=0.37)
    detector = load_detector(str(run / "checkpoints/step-7/ema.safetensors"), device="cpu")
    assert detector.threshold == 0.37 and to_dict(detector.build) == shard_directory.manifest["build"]


def test_a_model_folder_predicts_and_evaluates_like_its_run(make_run, shard_directory, write_video, tmp_path, capsys):
    run = make_run(build=BuildConfig(mode="frame", segment_seconds=2.0, min_seconds=1.6))
    write_folder(tmp_path / "detector", read_checkpoint(resolve_checkpoint(str(run))))
    path, said = write_video(tmp_path / "clip.mp4"), []
    for name in (run, tmp_path / "detector"):
        assert main(["predict", str(path), "--checkpoint", str(name), "--device", "cpu"]) == 0
        said.append(capsys.readouterr().out.split("windows")[0])
    assert said[0] == said[1] and "fake probability" in said[0]
    command = ["evaluate", "--checkpoint", str(tmp_path / "detector"), "--shards", str(shard_directory.path)]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu", "--num-workers", "0", "--allow-other-build"]
    assert main(command) == 0 and (tmp_path / "out" / "summary.json").is_file()


def test_a_threshold_belongs_to_the_weights_it_was_chosen_with(make_run):
    run = make_run(threshold=0.37)
    assert load_detector(f"{run}:last", device="cpu").threshold == 0.37
    assert load_detector(f"{run}:last:raw", device="cpu").threshold is None


def test_a_run_without_average_has_a_threshold_of_its_raw_weights(make_run):
    run = make_run(threshold=0.37, optim={"ema_decay": 0.0})
    assert not (run / "checkpoints/step-7/ema.safetensors").exists()
    assert load_detector(str(run), device="cpu").threshold == 0.37


def test_a_pretraining_checkpoint_has_no_heads(make_run):
    with pytest.raises(CheckpointError, match=r"stage 'pretrain', which has no real/fake heads; finetune it first"):
        load_detector(str(make_run("pretrain")), device="cpu")


def test_every_door_says_the_same_of_the_same_file(make_run, tiny_config, tmp_path):
    """A start for LoRA leaves its matrices out and is the plain classifier; one without heads scores nowhere."""
    reference = resolve_checkpoint(str(make_run()))
    tensors, _ = load_weights(reference.weights_path)
    config = tiny_config("finetune", finetune={"encoders": "lora"})
    start, headless = tmp_path / "start.safetensors", tmp_path / "headless.safetensors"
    lora = [name for name in build_model(config).state_dict() if name not in tensors]
    save_weights(start, tensors, make_sidecar("start", config, new=lora, trained_on=[]))
    heads = [name for name in tensors if "head" in name]
    rest = {name: tensor for name, tensor in tensors.items() if name not in heads}
    save_weights(headless, rest, make_sidecar("headless", reference.config, new=heads, trained_on=[]))
    for model in (load_detector(str(start), device="cpu").model, avff.load_model(start).model):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    said = set()
    for load in (load_detector, avff.load_model):
        with pytest.raises(CheckpointError, match=rf"lacks {len(heads)} tensors of a classifier") as raised:
            load(str(headless), device="cpu")
        said.add(str(raised.value))
    assert lora and len(said) == 1


def test_a_config_of_another_model_is_refused_with_both_values(make_run):
    run = make_run()
    config = resolve_checkpoint(str(run)).config
    assert load_detector(str(run), config=dataclasses.replace(config, seed=5), device="cpu")
    other = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, size="small"),
        clip=dataclasses.replace(config.clip, mel_mean=-4.0),
    )
    with pytest.raises(
        CheckpointError, match=r"clip\.mel_mean is -5\.081 .* -4\.0 .*\n.*model\.size is 'tiny' .* 'small'"
    ):
        load_detector(str(run), config=other, device="cpu")


def test_a_checkpoint_without_build_cannot_cut_files(make_run):
    with pytest.raises(CheckpointError, match="does not record how its clips were made"):
        load_detector(str(make_run(build=None)), device="cpu").require_build()


def test_a_missing_gpu_is_named(make_run, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        load_detector(str(make_run()), device="cuda")
