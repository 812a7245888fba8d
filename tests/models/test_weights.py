"""Weight files: round trip, strictness, and what each error says."""

import json
import os
from pathlib import Path

import pytest
import torch

from avff.errors import CheckpointError
from avff.files import sha256_of
from avff.models import build_model
from avff.models.weights import (
    load_initial_weights,
    load_into,
    load_weights,
    make_sidecar,
    parent_of,
    save_weights,
)


@pytest.fixture
def saved(tmp_path: Path, odd_config):
    config = odd_config()
    model = build_model(config)
    path = tmp_path / "made" / "weights.safetensors"
    save_weights(path, model.state_dict(), make_sidecar("a test", config, build={"mode": "faces"}))
    return path, model, config


def test_round_trip(saved) -> None:
    path, model, config = saved
    tensors, sidecar = load_weights(path)
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    assert sidecar["config"]["clip"]["image_size"] == config.clip.image_size
    assert sidecar["licences"] == ["Apache-2.0"] and sidecar["build"] == {"mode": "faces"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["weights.json", "weights.safetensors"], "no leftovers"


def test_sidecar_names_parents_and_gathers_their_licences(saved, tmp_path: Path) -> None:
    path, _, config = saved
    sidecar = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**sidecar, "licences": ["CC-BY-NC-4.0"]}))
    child = make_sidecar("child", config, parents=[parent_of(path)])
    assert child["parents"][0]["sha256"] == sha256_of(path)
    assert child["licences"] == ["Apache-2.0", "CC-BY-NC-4.0"]


def test_fake_probability_is_explained_where_there_is_one(odd_config) -> None:
    assert make_sidecar("", odd_config())["fake_probability"] is None
    assert "overall head" in make_sidecar("", odd_config("finetune"))["fake_probability"]


def test_initial_weights_are_loaded_whole(saved) -> None:
    path, model, config = saved
    other = build_model(config)
    with torch.no_grad():
        other.video_encoder.patch_embed.weight.zero_()
    assert load_initial_weights(other, path, config) == []
    assert torch.equal(other.video_encoder.patch_embed.weight, model.video_encoder.patch_embed.weight)


def test_parameters_left_out_on_purpose_keep_their_start(saved, tmp_path: Path) -> None:
    path, _, config = saved
    tensors, sidecar = load_weights(path)
    del tensors["audio_decoder.head.bias"]
    partial = tmp_path / "partial.safetensors"
    save_weights(partial, tensors, sidecar)
    with pytest.raises(CheckpointError, match=r"missing key audio_decoder.head.bias \[256\]"):
        load_initial_weights(build_model(config), partial, config)
    save_weights(partial, tensors, {**sidecar, "new": ["audio_decoder.head.bias"]})
    assert load_initial_weights(build_model(config), partial, config) == ["audio_decoder.head.bias"]


def test_all_wrong_keys_are_listed_with_the_nearest_right_ones(saved) -> None:
    _, model, config = saved
    state = dict(model.state_dict())
    state["video_encoder.patch_embd.weight"] = state.pop("video_encoder.patch_embed.weight")
    state["a2v.norm.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        load_into(build_model(config), state, "some.safetensors")
    lines = str(caught.value).splitlines()
    assert lines[0] == "some.safetensors: missing key video_encoder.patch_embed.weight [96, 1536]"
    assert "unexpected key video_encoder.patch_embd.weight (nearest: video_encoder.patch_embed.weight" in str(
        caught.value
    )
    assert "some.safetensors: key a2v.norm.bias has shape [5], the model's is [96]" in lines
    assert len(lines) == 3


def test_weights_of_another_config_name_both_values(saved, odd_config) -> None:
    path, _, _ = saved
    other = odd_config(clip={"hop_samples": 200}, model={"drop_path": 0.3})
    with pytest.raises(CheckpointError, match=r"\(clip.hop_samples 100 -> 200\); run tools/adapt_weights.py"):
        load_initial_weights(build_model(other), path, other)


def test_broken_files_are_named(saved) -> None:
    path, model, _ = saved
    with pytest.raises(CheckpointError, match=r"nowhere.safetensors: no such weight file"):
        load_weights(path.with_name("nowhere.safetensors"))
    with pytest.raises(CheckpointError, match=r"ends in .safetensors"):
        save_weights(path.with_suffix(".bin"), model.state_dict(), {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"not a whole .safetensors file"):
        load_weights(path)
    path.with_suffix(".json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"weights.json: expected a JSON object, found list"):
        load_weights(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"weights.json is missing beside it"):
        load_weights(path)


def test_the_same_decoder_under_its_name_is_the_same_model(saved, odd_config) -> None:
    path, _, _ = saved
    named, other = (odd_config(model={"decoder_size": size}) for size in ("tiny", "small"))
    assert load_initial_weights(build_model(named), path, named) == []
    with pytest.raises(CheckpointError, match=r"\(model.decoder_size 'tiny' -> 'small'\)"):
        load_initial_weights(build_model(other), path, other)


@pytest.fixture
def classifier(tmp_path: Path, odd_config):
    """Writes what a classifier's config makes: `path, config = classifier(**finetune)`."""

    def write(**finetune):
        config, path = odd_config("finetune", finetune=finetune), tmp_path / "classifier.safetensors"
        save_weights(path, build_model(config).state_dict(), make_sidecar("a test", config))
        return path, config

    return write


def test_lora_is_new_to_weights_without_it(classifier, odd_config) -> None:
    path, _ = classifier()
    lora = odd_config("finetune", finetune={"encoders": "lora"})
    new = load_initial_weights(build_model(lora), path, lora)
    assert len(new) == 2 * 4 * 2 * 2 and all(name.endswith(("lora_down", "lora_up")) for name in new)
    frozen = odd_config("finetune", finetune={"encoders": "freeze"})
    assert load_initial_weights(build_model(frozen), path, frozen) == []


def test_weights_with_lora_are_for_the_same_lora_only(classifier, odd_config) -> None:
    path, config = classifier(encoders="lora")
    assert load_initial_weights(build_model(config), path, config) == []
    for change, told in (
        ({}, "finetune.encoders 'lora' -> 'train'"),
        ({"encoders": "lora", "lora_rank": 4}, "finetune.lora_rank 8 -> 4"),
    ):
        other = odd_config("finetune", finetune=change)
        with pytest.raises(CheckpointError, match=rf"made for another config \({told}\); run tools/adapt_weights.py"):
            load_initial_weights(build_model(other), path, other)


def test_what_was_adapted_for_lora_starts_a_network_without_it(classifier, odd_config) -> None:
    """The file does not hold LoRA's tensors and lists them as new."""
    path, _ = classifier(encoders="lora")
    tensors, sidecar = load_weights(path)
    lora = [name for name in tensors if name.endswith(("lora_down", "lora_up"))]
    save_weights(path, {name: tensor for name, tensor in tensors.items() if name not in lora}, {**sidecar, "new": lora})
    plain = odd_config("finetune")
    assert load_initial_weights(build_model(plain), path, plain) == []


def test_others_may_read_what_the_umask_lets_them_read(tmp_path, odd_config) -> None:
    config = odd_config()
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            path = tmp_path / f"{umask}.safetensors"
            save_weights(path, {"a": torch.ones(1)}, make_sidecar("a test", config))
        finally:
            os.umask(before)
        assert [p.stat().st_mode & 0o777 for p in (path, path.with_suffix(".json"))] == [mode, mode]
