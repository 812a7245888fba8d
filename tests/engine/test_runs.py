"""Whole runs of `train` with real processes: ZeRO stages, ranks, resuming, damaged checkpoints, validation."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avff.config import Config
from avff.data.selection import evaluation_samples
from avff.data.shards import read_sample
from avff.engine.metrics_log import TIMING_FIELDS
from avff.evaluation.aggregate import aggregate, probability
from avff.evaluation.metrics import balanced_accuracy, roc_auc
from avff.files import sha256_of
from avff.inference.load import load_detector
from avff.json_lines import read_lines
from avff.models.build import build_model
from avff.models.weights import make_sidecar, save_weights
from avff.run_folder import checkpoint_dir, committed_steps, resolve_checkpoint
from avff.sidecar import read_sidecar
from avff.strict_yaml import to_dict

pytestmark = pytest.mark.slow

NUM_STEPS = 6
EARLIER = {"path": "shards/earlier", "fingerprint": "0" * 64}


@pytest.fixture(scope="module")
def runs(launch, make_config, shard_directory, tmp_path_factory) -> Path:
    """Trains on two ranks, damages what one rank is to continue, and trains on one rank."""
    folder = tmp_path_factory.mktemp("training")
    source = [{"path": str(shard_directory.path)}]

    def job(
        name: str, *, stop_in_step: int | None = None, stage: str = "pretrain", runs_dir: str = "runs", **engine: Any
    ) -> dict[str, Any]:
        config = make_config(
            stage=stage,
            name=name,
            runs_dir=str(folder / runs_dir),
            data={"train": source, "validation": source},
            faults={"max_substituted_fraction": 0.0},
            optim={"num_steps": NUM_STEPS, "warmup_steps": 2, "learning_rate": 1e-3, "ema_decay": 0.9},
            engine={
                "global_batch_size": 8,
                "validate_every_steps": 3,
                "checkpoint_every_steps": 2,
                "keep_checkpoints": 2,
                **engine,
            },
            logging={"panel_every_steps": 6 if name == "whole" else 0, "log_every_steps": 2},
        )
        return {"config": to_dict(config), "stop_in_step": stop_in_step}

    def train(num_ranks: int, jobs: list[dict[str, Any]]) -> None:
        path = folder / f"jobs{num_ranks}.json"
        path.write_text(json.dumps(jobs))
        launch("run_worker.py", num_ranks, path)

    initial = str(_write_initial_weights(folder / "initial.safetensors", make_config("finetune")))
    two = {"micro_batch_size": 2}
    train(
        2,
        [
            job("whole", **two),
            *(job(f"zero{stage}", zero_stage=stage, **two) for stage in (0, 2)),
            job("resumed", stop_in_step=3, **two),
            job("resumed", **two),
            job("moved", stop_in_step=3, **two),
            job("adapted", stop_in_step=3, stage="finetune", init_weights=initial, **two),
            # ZeRO-3 goes last: it replaces torch's linear function for the rest of the process.
            job("zero3", zero_stage=3, **two),
            job("finetuned", stage="finetune", zero_stage=3, **two),
        ],
    )
    moved = folder / "runs" / "moved"
    shutil.copytree(moved, folder / "runs" / "stopped")
    _flip_a_byte(checkpoint_dir(moved, 5) / "model" / "rank-00001.safetensors")
    with (moved / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "samples_seen": 40, "loss": 0.0}\n{"kind": "train", "st')
    # What a copy that was cut off leaves where the last step is to be saved.
    checkpoint_dir(moved, NUM_STEPS).mkdir()
    shutil.copytree(folder / "runs" / "adapted", folder / "rewritten" / "adapted")
    one = {"micro_batch_size": 4}
    train(
        1,
        [
            job("alone", **one),
            job("alone_resumed", stop_in_step=3, **one),
            job("alone_resumed", **one),
            # Here a forward pass holds half a contrastive group.
            job("moved", zero_stage=3, micro_batch_size=2),
        ],
    )
    Path(initial).write_bytes(b"other weights")
    Path(initial).with_suffix(".json").write_text("{}")
    train(1, [job("adapted", stage="finetune", runs_dir="rewritten", init_weights=initial, **one)])
    Path(initial).unlink()
    Path(initial).with_suffix(".json").unlink()
    train(1, [job("adapted", stage="finetune", init_weights=initial, **one)])
    return folder / "runs"


def _write_initial_weights(path: Path, config: Config) -> Path:
    """Writes weights without heads, which an earlier stage trained on shards that no run here names."""
    tensors = build_model(config).state_dict()
    new = sorted(name for name in tensors if "head" in name)
    kept = {name: tensor for name, tensor in tensors.items() if name not in new}
    save_weights(path, kept, make_sidecar("an earlier stage", config, new=new, trained_on=[EARLIER]))
    return path


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in read_lines(run / "metrics.jsonl")]


def _assert_same_losses(run: Path, other: Path, tolerance: float) -> None:
    lines, expected = _metrics(run), _metrics(other)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    assert len(lines) == 5  # training at 2, 4, 6 and validation at 3, 6
    for line, expected_line in zip(lines, expected, strict=True):
        assert line.keys() == expected_line.keys()
        for name, value in line.items():
            if name != "kind":
                assert value == pytest.approx(expected_line[name], rel=tolerance, abs=tolerance), (line["step"], name)


def _tensor_files(run: Path, step: int) -> dict[str, str]:
    directory = checkpoint_dir(run, step)
    return {str(p.relative_to(directory)): sha256_of(p) for p in sorted(directory.rglob("*.safetensors"))}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_stages_give_the_same_losses(runs, stage):
    _assert_same_losses(runs / f"zero{stage}", runs / "whole", tolerance=1e-6)


def test_one_rank_gives_the_losses_of_two(runs):
    _assert_same_losses(runs / "alone", runs / "whole", tolerance=1e-5)


@pytest.mark.parametrize(("resumed", "whole"), [("resumed", "whole"), ("alone_resumed", "alone")])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(runs, resumed, whole):
    assert _metrics(runs / resumed) == _metrics(runs / whole)
    files = _tensor_files(runs / resumed, NUM_STEPS)
    assert files == _tensor_files(runs / whole, NUM_STEPS)
    num_ranks = 2 if whole == "whole" else 1
    assert len(files) == 2 + 2 * num_ranks  # weights, ema, and both engines' state per rank


def test_a_stopped_run_says_so_and_is_finished_later(runs):
    # The signal came within the fourth update and was agreed on with the fifth.
    stopped = json.loads((runs / "stopped" / "exit.json").read_text())
    assert (stopped["code"], stopped["step"]) == (75, 5)
    assert committed_steps(runs / "stopped")[-1] == 5
    finished = json.loads((runs / "resumed" / "exit.json").read_text())
    assert (finished["reason"], finished["code"], finished["step"]) == ("finished", 0, 6)


def test_a_run_moves_to_another_number_of_ranks_and_stage_past_a_damaged_checkpoint(runs):
    assert {path.name for path in (runs / "moved" / "checkpoints").glob("*.damaged")} == {
        "step-5.damaged",
        "step-6.damaged",
    }
    assert committed_steps(runs / "moved")[-1] == NUM_STEPS
    _assert_same_losses(runs / "moved", runs / "whole", tolerance=1e-5)


@pytest.mark.parametrize("runs_dir", ["runs", "rewritten"])
def test_a_run_continues_without_the_file_it_started_from(runs, runs_dir, shard_directory):
    run = runs.parent / runs_dir / "adapted"
    stopped, finished = (resolve_checkpoint(f"{run}:{which}") for which in ("step-5", "last"))
    assert finished.step == NUM_STEPS
    parents, new_names = finished.state["parents"], finished.state["new_names"]
    assert parents == stopped.state["parents"] and parents[0]["what"] == "an earlier stage"
    assert new_names == stopped.state["new_names"] and new_names
    lines = {line["step"]: line for line in _metrics(run) if line["kind"] == "train"}
    before, after = ({name for name in lines[step] if name.startswith("learning_rate/")} for step in (4, NUM_STEPS))
    assert before == after and "learning_rate/model/decay_new" in after
    sidecar = read_sidecar(finished.weights_path)
    assert sidecar["parents"] == parents
    own, earlier = sidecar["trained_on"]
    assert own["fingerprint"] == shard_directory.fingerprint and own["num_samples"] == 14
    assert earlier == EARLIER and finished.state["trained_on"] == sidecar["trained_on"]


def test_old_checkpoints_are_pruned_and_the_best_is_kept(runs):
    values = {
        line["step"]: line["validation/reconstruction"]
        for line in _metrics(runs / "whole")
        if line["kind"] == "validation"
    }
    best = min(values, key=values.__getitem__)
    assert committed_steps(runs / "whole") == sorted({best, 4, 6})
    assert resolve_checkpoint(str(runs / "whole")).step == best


def test_validation_scores_the_averaged_weights_as_evaluation_does(runs, shard_directory):
    """Loads the checkpoint in this process and scores every validation clip one by one."""
    last = _metrics(runs / "finetuned")[-1]
    detector = load_detector(f"{runs / 'finetuned'}:last")
    samples = evaluation_samples([shard_directory], split="val", labels="known")
    windows = [
        w for s in samples for w in detector.score(detector.view.evaluation_clips(read_sample(*s)), batch_size=1)
    ]
    scores = aggregate(windows)
    labels_N = np.array([sample.row.is_fake for sample in samples])
    logits_N = np.array([scores[sample.row.key].logits.overall for sample in samples])
    assert last["validation/auc"] == pytest.approx(roc_auc(logits_N, labels_N))
    probabilities_N = np.array([probability(logit) for logit in logits_N])
    accuracy = balanced_accuracy(probabilities_N, labels_N, detector.threshold)
    assert last["validation/balanced_accuracy"] == pytest.approx(accuracy)
    assert detector.threshold == last["validation/threshold"]


def test_a_panel_is_drawn_and_numbers_are_finite(runs):
    assert (runs / "whole" / "panels" / "step-6.png").stat().st_size > 10_000
    for line in _metrics(runs / "whole"):
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float)), line
