"""A run that moves over other numbers of ranks and other ZeRO stages, against the same run left where it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from avff.engine.metrics_log import TIMING_FIELDS
from avff.run_folder import checkpoint_dir
from avff.strict_yaml import to_dict

pytestmark = [pytest.mark.slow, pytest.mark.faults]

GLOBAL_BATCH = CONTRASTIVE_GROUP = 12
"""Divides over 1, 2, 3 and 4 ranks."""
LEG_STEPS = 20
LEGS = {"start": (2, 1, 6, 5), "one": (1, 3, 4, 25), "four": (4, 2, 3, 45), "three": (3, 0, 4, 65)}
"""Name: ranks, ZeRO stage, micro batch, updates done at its end. On one rank, a contrastive group takes three passes."""
NUM_STEPS = 65
ADAM_AND_AVERAGE = ("weights", "exp_avg", "exp_avg_sq", "ema")


@pytest.fixture(scope="module")
def folder(launch, make_config, make_sample, write_directory, tmp_path_factory) -> Path:
    """Runs `unmoved` on two ranks throughout, and `moved` from 2 to 1 to 4 to 3."""
    folder = tmp_path_factory.mktemp("moves")
    shards = write_directory(folder / "shards", [make_sample(f"clip{i:02d}") for i in range(31)], num_shards=3)

    def job(name: str, leg: str) -> dict[str, Any]:
        _, zero_stage, micro_batch, stop = LEGS[leg]
        config = make_config(
            name=name,
            runs_dir=str(folder / "runs"),
            data={"train": [{"path": str(shards.path)}]},
            pretrain={"contrastive_group_size": CONTRASTIVE_GROUP},
            model={"drop_path": 0.1},
            optim={"num_steps": NUM_STEPS, "warmup_steps": 5, "learning_rate": 1e-3, "ema_decay": 0.9},
            engine={
                "global_batch_size": GLOBAL_BATCH,
                "micro_batch_size": micro_batch,
                "zero_stage": zero_stage,
                "keep_checkpoints": len(LEGS),
            },
            logging={"log_every_steps": 1},
        )
        # The signal comes within an update and is agreed on with the next.
        stop_in_step = stop - 2 if name == "moved" and stop < NUM_STEPS else None
        return {"config": to_dict(config), "stop_in_step": stop_in_step, "watch": str(folder / "watch" / name / leg)}

    for leg, (num_ranks, *_) in LEGS.items():
        names = ["unmoved", "moved"] if leg == "start" else ["moved"]
        (folder / "jobs.json").write_text(json.dumps([job(name, leg) for name in names]))
        launch("numbers_worker.py", num_ranks, folder / "jobs.json")
    return folder


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMING_FIELDS} for line in lines]


def _keys_by_step(watch: Path) -> dict[int, list[str]]:
    """What all ranks together read in each update, sorted: which rank reads what depends on their number."""
    lines = [json.loads(line) for path in watch.glob("*/keys.jsonl") for line in path.read_text().splitlines()]
    keys = {line["step"]: sorted(k for rank in line["keys"] for micro in rank for k in micro) for line in lines}
    assert len(keys) == len(lines), "no update was made twice"
    return keys


def _stored_state(directory: Path) -> dict[str, Tensor]:
    """Puts a checkpoint's tensors together by hand: each rank's file holds runs of flattened parameters."""
    state: dict[str, Tensor] = {}
    for engine in ("model", "critics"):
        pieces: dict[str, dict[int, Tensor]] = {}
        for path in (directory / engine).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["fragments"])
            for name, tensor in load_file(path).items():
                pieces.setdefault(name, {})[about["starts"][name.split("/", 1)[1]]] = tensor
            state[f"{engine}/num_updates"] = torch.tensor([about["num_updates"]])
        state |= {f"{engine}/{name}": torch.cat([runs[s] for s in sorted(runs)]) for name, runs in pieces.items()}
    return state


def test_every_update_reads_the_same_clips(folder):
    moved, unmoved = (_keys_by_step(folder / "watch" / name) for name in ("moved", "unmoved"))
    assert sorted(moved) == list(range(NUM_STEPS))
    assert all(len(keys) == GLOBAL_BATCH for keys in moved.values())
    assert moved == unmoved


@pytest.mark.parametrize("leg", list(LEGS)[1:])
def test_losses_after_a_move_are_those_of_the_run_that_stayed(folder, leg):
    stop = LEGS[leg][-1]
    moved, unmoved = (_metrics(folder / "runs" / name)[stop - LEG_STEPS : stop] for name in ("moved", "unmoved"))
    assert [line["step"] for line in moved] == list(range(stop - LEG_STEPS + 1, stop + 1))
    for line, expected in zip(moved, unmoved, strict=True):
        assert line.keys() == expected.keys()
        for name in line.keys() - {"kind"}:
            # The floor is for cosines about 0.
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), (line["step"], name)


@pytest.mark.parametrize("leg", list(LEGS)[1:])
def test_what_is_loaded_is_what_was_saved_to_the_bit(folder, leg):
    saved_step = LEGS[leg][-1] - LEG_STEPS
    stored = _stored_state(checkpoint_dir(folder / "runs" / "moved", saved_step))
    found = load_file(folder / "watch" / "moved" / leg / "start.safetensors")
    assert found.keys() == stored.keys()
    assert {name.split("/")[1] for name in found} == {*ADAM_AND_AVERAGE, "num_updates"}
    for name, tensor in found.items():
        assert torch.equal(tensor.flatten(), stored[name]), name
    assert found["model/num_updates"].item() == found["critics/num_updates"].item() == saved_step
