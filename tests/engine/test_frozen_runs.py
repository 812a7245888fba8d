"""Finetuning with frozen encoders, trained blocks or LoRA, and layer decay: real runs under every ZeRO stage."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_runs import differences
from safetensors.torch import load_file
from torch import Tensor

from avff.config import Config
from avff.engine.metrics_log import TIMING_FIELDS
from avff.inference.load import load_detector
from avff.json_lines import read_lines
from avff.models.build import build_model
from avff.models.freeze import frozen_names
from avff.models.lora import merge_lora
from avff.models.weights import load_into, make_sidecar, save_weights
from avff.run_folder import EMA, WEIGHTS, checkpoint_dir
from avff.strict_yaml import to_dict

pytestmark = pytest.mark.slow

NUM_STEPS, STOP_STEP, BATCH = 3, 0, 4
RATE, LAYER_DECAY, NEW_FACTOR, NUM_BLOCKS = 1e-3, 0.5, 2.0, 4
STAGES = (0, 1, 2, 3)
CHOICES: dict[str, dict[str, Any]] = {
    "freeze": {"encoders": "freeze"},
    "block": {"encoders": "freeze", "trained_blocks": 1},
    "lora": {"encoders": "lora", "lora_rank": 2},
}
RESUMED = [("block", 1), ("freeze", 3), ("lora", 3)]
"""What is stopped and continued where it was; so is `frugal`."""
FRUGAL: dict[str, dict[str, Any]] = {
    "model": {"activation_checkpointing": "blocks", "drop_path": 0.2},
    "engine": {"precision": "bf16"},
}
WITHOUT_EFFECT = {f"{part}.bias" for part in ("a2v.token_map", "v2a.token_map", "video_pool.query", "audio_pool.query")}
"""A norm or a softmax takes out what these add, so their gradients are rounding, by whose sign Adam moves them."""


@pytest.fixture(scope="module")
def config_of(make_config, shard_directory, tmp_path_factory):
    """Makes the config of one run; all start from one plain file of stage 3 without heads."""
    folder = tmp_path_factory.mktemp("frozen")
    source = [{"path": str(shard_directory.path)}]

    def make(name: str, choice: str, zero_stage: int, num_ranks: int = 2, **sections: dict[str, Any]) -> Config:
        return make_config(
            "finetune",
            name=name,
            runs_dir=str(folder / "runs"),
            data={"train": source, "validation": source},
            finetune=CHOICES[choice],
            optim={
                "num_steps": NUM_STEPS,
                "warmup_steps": 0,
                "learning_rate": RATE,
                "layer_decay": LAYER_DECAY,
                "new_layer_factor": NEW_FACTOR,
                "weight_decay": 0.0,
                "ema_decay": 0.9,
            },
            engine={
                "init_weights": str(folder / "initial.safetensors"),
                "global_batch_size": BATCH,
                "micro_batch_size": BATCH // num_ranks,
                "zero_stage": zero_stage,
                "checkpoint_every_steps": 1,
                "keep_checkpoints": NUM_STEPS,
                **sections.get("engine", {}),
            },
            model=sections.get("model", {}),
            logging={"log_every_steps": 1},
        )

    plain = make_config("finetune", seed=3)
    tensors = {name: tensor for name, tensor in build_model(plain).state_dict().items() if "_head" not in name}
    heads = sorted(build_model(plain).state_dict().keys() - tensors)
    save_weights(folder / "initial.safetensors", tensors, make_sidecar("stage 3's start", plain, new=heads))
    return make


@pytest.fixture(scope="module")
def runs(launch, config_of) -> Path:
    """Every choice under every stage on two ranks, some of them stopped and continued, one moved to one rank."""
    folder = config_of("any", "freeze", 0).run_dir.parents[1]

    def job(
        name: str, choice: str, zero_stage: int, *, stops: bool = False, num_ranks: int = 2, **sections: dict[str, Any]
    ) -> dict[str, Any]:
        config = config_of(name, choice, zero_stage, num_ranks, **sections)
        stop = STOP_STEP if stops else None
        return {"config": to_dict(config), "stop_in_step": stop, "graph": str(folder / f"{name}.graph.json")}

    def train(num_ranks: int, jobs: list[dict[str, Any]]) -> None:
        (folder / "jobs.json").write_text(json.dumps(jobs))
        launch("frozen_worker.py", num_ranks, folder / "jobs.json")

    two_ranks = [job("frugal", "lora", 1, **FRUGAL)]
    two_ranks += [job("frugal_resumed", "lora", 1, stops=stops, **FRUGAL) for stops in (True, False)]
    # ZeRO-3 goes last: it replaces torch's linear function for the rest of the process.
    for stage, choice in product(STAGES, CHOICES):
        two_ranks.append(job(f"{choice}{stage}", choice, stage))
        if (choice, stage) in RESUMED:
            two_ranks += [job(f"{choice}{stage}_resumed", choice, stage, stops=stops) for stops in (True, False)]
    train(2, [*two_ranks, job("moved", "lora", 3, stops=True)])
    (folder / "initial.safetensors").rename(folder / "gone.safetensors")
    train(1, [job("moved", "lora", 0, num_ranks=1)])
    return folder / "runs"


def initial_tensors(runs: Path) -> dict[str, Tensor]:
    return load_file(runs.parent / "gone.safetensors")


def tensors_of(run: Path, name: str = WEIGHTS, step: int = NUM_STEPS) -> dict[str, Tensor]:
    return load_file(checkpoint_dir(run, step) / name)


def train_lines(run: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_lines(run / "metrics.jsonl") if line.pop("kind") == "train"]
    return [{name: value for name, value in line.items() if name not in TIMING_FIELDS} for line in lines]


@pytest.mark.parametrize(("choice", "stage"), product(CHOICES, STAGES))
def test_files_hold_everything_and_what_is_frozen_is_as_it_was_to_the_bit(runs, config_of, choice, stage):
    run, initial = runs / f"{choice}{stage}", initial_tensors(runs)
    start = build_model(config_of("x", choice, stage))
    for name in (WEIGHTS, EMA):
        tensors = tensors_of(run, name)
        assert tensors.keys() == start.state_dict().keys()
        frozen = frozen_names(start)
        assert frozen and all(torch.equal(tensors[key], initial[key]) for key in frozen)
        for key, tensor in start.named_parameters():
            assert not torch.equal(tensors[key], initial.get(key, tensor)), key


@pytest.mark.parametrize(("choice", "stage"), product(CHOICES, STAGES[1:]))
def test_stages_agree(runs, choice, stage):
    tensors, expected = tensors_of(runs / f"{choice}{stage}"), tensors_of(runs / f"{choice}0")
    for name, tensor in expected.items():
        if name not in WITHOUT_EFFECT:
            assert (tensors[name] - tensor).abs().max() < 1e-2 * RATE, name
    for line, reference in zip(train_lines(runs / f"{choice}{stage}"), train_lines(runs / f"{choice}0"), strict=True):
        assert line == pytest.approx(reference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("choice", "stage"), product(CHOICES, STAGES))
def test_a_frozen_encoder_has_no_graph(runs, choice, stage):
    found = json.loads((runs.parent / f"{choice}{stage}.graph.json").read_text())
    assert found == {name: choice != "freeze" for name in ("video_encoder", "audio_encoder")}


@pytest.mark.parametrize("name", [*(f"{choice}{stage}" for choice, stage in RESUMED), "frugal"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(runs, name):
    assert differences(runs / f"{name}_resumed", runs / name) == []


def test_a_run_moves_to_another_number_of_ranks_and_stage_without_the_file_it_started_from(runs, config_of):
    moved, stayed = tensors_of(runs / "moved"), tensors_of(runs / "lora3")
    frozen = frozen_names(build_model(config_of("x", "lora", 0)))
    assert all(torch.equal(moved[name], stayed[name]) for name in frozen)
    for line, reference in zip(train_lines(runs / "moved"), train_lines(runs / "lora3"), strict=True):
        assert line == pytest.approx(reference, rel=1e-5, abs=1e-6)


def expected_rate(name: str, start: dict[str, Tensor]) -> float:
    """Peak rate by the formula; what the start lacks learns faster."""
    factor = 1.0 if name in start else NEW_FACTOR
    block = re.match(r"(?:video|audio)_encoder\.stack\.blocks\.(\d)\.", name)
    if block:
        factor *= LAYER_DECAY ** (NUM_BLOCKS + 1 - (int(block[1]) + 1))
    return RATE * factor


@pytest.mark.parametrize(("choice", "stage"), product(("block", "lora"), STAGES))
def test_the_first_update_goes_as_far_as_the_layers_rate_allows(runs, config_of, choice, stage):
    """Adam's first step is the learning rate times the gradient's sign."""
    start, initial = build_model(config_of("x", choice, stage)), initial_tensors(runs)
    after = tensors_of(runs / f"{choice}{stage}", step=1)
    factor = train_lines(runs / f"{choice}{stage}")[0]["learning_rate/model/no_decay"] / RATE
    for name, parameter in start.named_parameters():
        longest = (after[name] - initial.get(name, parameter)).abs().max().item()
        # LoRA's first factor has no gradient as long as the other one is zero.
        if name not in WITHOUT_EFFECT and not name.endswith("lora_down"):
            assert longest == pytest.approx(expected_rate(name, initial) * factor, rel=2e-3), name


def test_the_metrics_name_few_rates(runs):
    rates = {n: v for n, v in train_lines(runs / "lora1")[0].items() if n.startswith("learning_rate/model/")}
    short = {name.removeprefix("learning_rate/model/"): rate for name, rate in rates.items()}
    layered = {f"{encoder}_{end}" for encoder in ("video", "audio") for end in ("lowest", "highest")}
    assert short.keys() == {"decay", "no_decay", "decay_new", "no_decay_new", *layered}
    # LoRA's matrices are new, so the last block's learn at NEW_FACTOR x LAYER_DECAY.
    assert short["video_highest"] == pytest.approx(short["decay"] * NEW_FACTOR * LAYER_DECAY)
    assert short["audio_lowest"] == pytest.approx(short["decay"] * NEW_FACTOR * LAYER_DECAY**NUM_BLOCKS)


def test_a_checkpoint_with_lora_scores_and_merges(runs, config_of):
    detector = load_detector(f"{runs / 'lora1'}:last", device="cpu")
    stored = tensors_of(runs / "lora1", EMA)
    assert stored["video_encoder.stack.blocks.0.attn.qkv.lora_up"].abs().max() > 0
    tensors, plain_config = merge_lora(stored, config_of("x", "lora", 1))
    load_into(build_model(plain_config), tensors, "merged")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in detector.model.state_dict().items())
