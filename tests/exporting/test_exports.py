"""Weight files out of runs: what they hold, what they say, and that they come back in."""

import json

import adapt_weights
import pytest
import torch
from exported import BUILD, VALIDATION

import avff
from avff.checkpoints import read_checkpoint
from avff.config import save_config
from avff.exporting.graph import example_inputs
from avff.files import sha256_of
from avff.models import build_model
from avff.models.weights import load_initial_weights, load_into, load_weights, save_weights
from avff.run_folder import resolve_checkpoint
from avff.strict_yaml import to_dict

MARLIN = {
    "file": "marlin.pt",
    "what": "MARLIN",
    "sha256": "ab" * 32,
    "licences": ["CC-BY-NC-4.0"],
    "non_commercial": True,
    "url": "https://example.org/marlin",
    "parents": [],
}


def test_a_classifier_brings_all_that_scoring_needs_and_where_it_comes_from(run, make_run, tmp_path):
    run_dir = make_run(steps=(6, 8), sidecar={"parents": [MARLIN], "trained_on": [{"path": "x", "fingerprint": None}]})
    output = tmp_path / "out.safetensors"
    code, text, _ = run("export", f"{run_dir}:step-6", "--what", "classifier", "--output", output)
    assert code == 0 and "CC-BY-NC-4.0, not for commercial use" in text
    ema = run_dir / "checkpoints/step-6/ema.safetensors"
    tensors, sidecar = load_weights(output)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in load_weights(ema)[0].items())
    (parent,) = sidecar["parents"]
    assert (parent["sha256"], parent["parents"], parent["non_commercial"]) == (sha256_of(ema), [MARLIN], True)
    assert (sidecar["licences"], sidecar["non_commercial"]) == (["Apache-2.0", "CC-BY-NC-4.0"], True)
    assert (sidecar["validation"], sidecar["build"], sidecar["step"]) == (VALIDATION, to_dict(BUILD), 6)
    assert (sidecar["trained_on"], sidecar["new"]) == ([{"path": "x", "fingerprint": None}], [])
    assert avff.load_model(output).threshold == avff.load_model(run_dir).threshold == 0.4
    assert run("export", f"{run_dir}:last:raw", "--output", output)[0] == 0
    assert resolve_checkpoint(str(output)).threshold is None  # validation judged the average


@pytest.mark.parametrize(
    ("stage", "chosen", "prefixes"),
    [
        ("pretrain", (), ("video_encoder.", "audio_encoder.")),
        ("pretrain", ("--modality", "audio"), ("audio_encoder.",)),
        ("finetune", ("--modality", "video"), ("video_encoder.",)),
    ],
)
def test_encoders_go_out_and_come_back_in(run, make_run, tiny_config, tmp_path, stage, chosen, prefixes):
    run_dir = make_run(stage)
    output, target = tmp_path / "encoders.safetensors", tmp_path / "next.yaml"
    assert run("export", run_dir, "--what", "encoders", *chosen, "--output", output)[0] == 0
    tensors, sidecar = load_weights(output)
    every = load_weights(run_dir / "checkpoints/step-8/ema.safetensors")[0]
    assert tensors.keys() == {name for name in every if name.startswith(prefixes)}
    assert set(sidecar["new"]) == every.keys() - tensors.keys()

    config = tiny_config("finetune", name="next")
    save_config(config, target)
    start = tmp_path / "init.safetensors"
    assert adapt_weights.main(["--from", str(output), "--to", str(target), "--output", str(start)]) == 0
    network = build_model(config)
    new = load_initial_weights(network, start, config)
    assert set(new) == network.state_dict().keys() - tensors.keys()
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in tensors.items())


def test_lora_is_merged_into_the_plain_network(run, make_run, tmp_path):
    run_dir = make_run(finetune={"encoders": "lora", "lora_rank": 3}, optim={"ema_decay": 0.0})
    output = tmp_path / "out.safetensors"
    assert run("export", run_dir, "--what", "classifier", "--output", output)[0] == 0
    reference = resolve_checkpoint(str(run_dir))
    with_lora = build_model(reference.config)
    load_into(with_lora, load_weights(reference.weights_path)[0], "run")
    merged = resolve_checkpoint(str(output))
    plain = build_model(merged.config)
    load_into(plain, load_weights(output)[0], "export")
    assert merged.config.finetune.encoders == "train"
    assert not any("lora" in name for name in plain.state_dict())
    inputs = (*example_inputs(merged.config, 2), torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        expected, found = with_lora.eval()(*inputs), plain.eval()(*inputs)
        frozen = load_weights(reference.weights_path)[0]
        load_into(plain, {name: frozen[name] for name in plain.state_dict()}, "without the learnt change")
        without = plain(*inputs)
    assert torch.allclose(found.overall_B, expected.overall_B, atol=1e-5)
    assert not torch.allclose(without.overall_B, expected.overall_B, atol=1e-3)


def test_a_mean_is_taken_in_float64_and_names_all_its_parents(run, make_run, tmp_path):
    run_dir = make_run(steps=(2, 4, 6))
    output = tmp_path / "mean.safetensors"
    code, text, _ = run("average", *(f"{run_dir}:step-{step}" for step in (2, 4, 6)), "--output", output)
    assert code == 0 and text.count("from finetune run 'tiny'") == 3
    files = [run_dir / f"checkpoints/step-{step}/ema.safetensors" for step in (2, 4, 6)]
    members = [load_weights(path)[0] for path in files]
    tensors, sidecar = load_weights(output)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, torch.stack([member[name] for member in members]).double().mean(0).float()), name
    assert [parent["sha256"] for parent in sidecar["parents"]] == [sha256_of(path) for path in files]
    assert sidecar["what"].startswith("mean of 3 checkpoints") and "at step 4" in sidecar["what"]
    assert resolve_checkpoint(str(output)).threshold is None
    assert read_checkpoint(resolve_checkpoint(str(output))).build == to_dict(BUILD)


def test_unlike_networks_have_no_mean(run, make_run, tmp_path):
    one = make_run(name="one")
    other = make_run(name="other", clip={"mel_mean": -4.0}, model={"audio_layer_norm_eps": 1e-5}, build=None)
    code, _, problem = run("average", one, other, "--output", tmp_path / "mean.safetensors")
    assert code == 2
    for expected in ("clip.mel_mean -5.081 against -4.0", "model.audio_layer_norm_eps 1e-06 against 1e-05", "build {"):
        assert expected in problem
    assert "learning_rate" not in problem and not (tmp_path / "mean.safetensors").exists()
    code, _, problem = run("average", one, f"{one}:last", "--output", tmp_path / "mean.safetensors")
    assert code == 2 and "two or more different checkpoints" in problem


def test_unlike_tensors_are_counted_by_part(run, make_run, tmp_path):
    run_dir = make_run(steps=(2, 4))
    one, other = (tmp_path / name for name in ("one.safetensors", "half.safetensors"))
    assert run("export", f"{run_dir}:step-2", "--output", one)[0] == 0
    tensors, sidecar = load_weights(run_dir / "checkpoints/step-4/ema.safetensors")
    left_out = [name for name in tensors if name.startswith(("a2v.", "v2a."))]
    kept = {name: tensor.half() for name, tensor in tensors.items() if name not in left_out}
    save_weights(other, kept, {**sidecar, "new": left_out})
    code, _, problem = run("average", one, other, "--output", tmp_path / "mean.safetensors")
    assert code == 2 and not (tmp_path / "mean.safetensors").exists()
    by_part = ", ".join(f"{part} {sum(name.startswith(part) for name in left_out)}" for part in ("a2v", "v2a"))
    assert f"only {one} holds {by_part} tensors, such as a2v." in problem
    assert "of another type: audio_encoder " in problem and "torch.float32 against torch.float16" in problem
    assert len(problem.splitlines()) == 3


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("pretrain", ("--what", "classifier"), "is of stage 'pretrain', which has no real/fake heads"),
        ("finetune", ("--what", "classifier", "--modality", "audio"), "goes with --what encoders, not classifier"),
    ],
)
def test_what_a_run_does_not_have_is_refused(run, make_run, tmp_path, stage, arguments, message):
    code, _, problem = run("export", make_run(stage), *arguments, "--output", tmp_path / "x.safetensors")
    assert code == 2 and message in problem
    assert not list(tmp_path.glob("x.*"))


def test_a_file_without_heads_is_no_classifier(run, make_run, tmp_path):
    run_dir = make_run()
    encoders = tmp_path / "encoders.safetensors"
    assert run("export", run_dir, "--what", "encoders", "--output", encoders)[0] == 0
    for what, message in (("full", "there is nothing of them to export"), ("classifier", "tensors of a classifier")):
        code, _, problem = run("export", encoders, "--what", what, "--output", tmp_path / "x.safetensors")
        assert code == 2 and message in problem and "a2v." in problem


def test_weights_with_other_keys_are_listed(run, make_run, tmp_path):
    output = tmp_path / "out.safetensors"
    assert run("export", make_run(), "--output", output)[0] == 0
    sidecar = json.loads(output.with_suffix(".json").read_text())
    sidecar["config"]["model"]["size"] = "small"
    output.with_suffix(".json").write_text(json.dumps(sidecar))
    code, _, problem = run("export", output, "--output", tmp_path / "again.safetensors")
    assert code == 2 and "missing key video_encoder.stack.blocks.4." in problem and "the model's is" in problem
