"""Numbers that are not finite on one rank, in the real networks: no rank and neither engine takes the update.

What the updates around a skipped one amount to is tested in test_zero.py, against plain torch.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from avff.files import sha256_of
from avff.run_folder import checkpoint_dir, committed_steps
from avff.strict_yaml import to_dict

pytestmark = [pytest.mark.slow, pytest.mark.faults]

STAGES, PRECISIONS = (0, 1, 2, 3), ("fp32", "bf16")
NUM_STEPS = 5
FAULTS = {1: "input", 2: "model", 3: "critics"}
"""What goes wrong on rank 1, by update (see numbers_worker.py)."""


@pytest.fixture(scope="module")
def runs(launch, make_config, shard_directory, tmp_path_factory) -> Path:
    """One run per stage and precision with three disturbed updates, and two that are disturbed until they stop."""
    folder = tmp_path_factory.mktemp("nonfinite")

    def job(
        name: str, zero_stage: int, precision: str, disturb: dict[int, str] = FAULTS, max_skips: int = 4
    ) -> dict[str, Any]:
        config = make_config(
            name=name,
            runs_dir=str(folder),
            data={"train": [{"path": str(shard_directory.path)}]},
            optim={"num_steps": NUM_STEPS, "warmup_steps": 0, "learning_rate": 1e-3, "ema_decay": 0.9},
            pretrain={"contrastive_group_size": 2},
            engine={
                "global_batch_size": 4,
                "micro_batch_size": 1,
                "zero_stage": zero_stage,
                "precision": precision,
                "checkpoint_every_steps": 1,
                "keep_checkpoints": NUM_STEPS,
            },
            faults={"max_nonfinite_steps": max_skips},
            logging={"log_every_steps": 1},
        )
        return {"config": to_dict(config), "faults": disturb, "watch": str(folder / "watch" / name)}

    def train(*jobs: dict[str, Any]) -> None:
        (folder / "jobs.json").write_text(json.dumps(jobs))
        launch("numbers_worker.py", 2, folder / "jobs.json")

    # A run that stops on bad numbers ends its process, and ZeRO-3 replaces torch's linear function for the rest of one.
    disturbed = [job(f"{stage}-{precision}", stage, precision) for stage, precision in product(STAGES, PRECISIONS)]
    train(*disturbed[:4], job("bad-critics", 1, "fp32", {1: "critics", 2: "critics"}, max_skips=2))
    train(*disturbed[4:], job("bad-input", 3, "bf16", {0: "input", 2: "input", 3: "input"}, max_skips=2))
    return folder


def _skipped(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "ledger.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "skipped"]


def _tensors(run: Path, step: int) -> dict[str, str]:
    """sha256 of everything that both engines hold after so many updates."""
    directory = checkpoint_dir(run, step)
    return {str(p.relative_to(directory)): sha256_of(p) for p in sorted(directory.rglob("*.safetensors"))}


def _last_micro_batch(run: Path, step: int) -> list[str]:
    """Keys that rank 1 read last in an update."""
    lines = map(json.loads, (run.parent / "watch" / run.name / "keys.jsonl").read_text().splitlines())
    return next(line["keys"][1][-1] for line in lines if line["step"] == step)


@pytest.mark.parametrize(("stage", "precision"), product(STAGES, PRECISIONS))
def test_a_bad_number_on_one_rank_leaves_both_engines_as_they_were(runs, stage, precision):
    run = runs / f"{stage}-{precision}"
    assert committed_steps(run) == list(range(1, NUM_STEPS + 1))
    for step in range(1, NUM_STEPS):
        before, after = _tensors(run, step), _tensors(run, step + 1)
        assert before.keys() == after.keys()
        unchanged = {name for name in before if before[name] == after[name]}
        assert unchanged == (set(before) if step in FAULTS else set()), step


@pytest.mark.parametrize(("stage", "precision"), product(STAGES, PRECISIONS))
def test_the_ledger_tells_what_went_wrong_where(runs, stage, precision):
    run = runs / f"{stage}-{precision}"
    from_input, from_model, from_critics = _skipped(run)
    assert [line["step"] for line in (from_input, from_model, from_critics)] == [step + 1 for step in FAULTS]
    # The contrastive loss gathers embeddings and so is NaN on both ranks; sound is reconstructed on one.
    culprits = [batch for batch in from_input["batches"] if batch["terms"]["reconstruction_audio"] == "nan"]
    assert [(batch["rank"], batch["keys"]) for batch in culprits] == [(1, _last_micro_batch(run, 1))]
    assert all(batch["terms"]["contrastive"] == "nan" for batch in from_input["batches"])
    for line, name in ((from_model, "model"), (from_critics, "critics")):
        assert line["batches"] == [], "every loss was finite"
        assert [trainable for trainable, norm in line["gradient_norms"].items() if norm == "nan"] == [name]


@pytest.mark.parametrize(("stage", "precision"), product(STAGES, PRECISIONS))
def test_metrics_count_skips_and_leave_their_numbers_out(runs, stage, precision):
    lines = [json.loads(line) for line in (runs / f"{stage}-{precision}" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_updates"] for line in lines] == [0, 1, 2, 3, 3]
    assert ["loss" in line for line in lines] == [step not in FAULTS for step in range(NUM_STEPS)]
    assert not any(isinstance(value, float) and value != value for line in lines for value in line.values())


def test_skips_in_a_row_stop_the_run_and_name_step_loss_and_keys(runs):
    run = runs / "bad-input"
    ended = json.loads((run / "exit.json").read_text())
    assert (ended["code"], [line["step"] for line in _skipped(run)]) == (3, [1, 3, 4])
    assert "step 4: 2 updates in a row were not finite" in ended["reason"]
    sentence = next(s for s in ended["reason"].split("; ") if "reconstruction_audio=nan" in s)
    assert sentence.startswith("rank 1: ")
    assert sentence.endswith(f"on keys {', '.join(_last_micro_batch(run, 3))}")


def test_gradients_alone_stop_the_run_too(runs):
    ended = json.loads((runs / "bad-critics" / "exit.json").read_text())
    assert ended["code"] == 3
    assert "step 3: 2 updates in a row were not finite (faults.max_nonfinite_steps=2)" in ended["reason"]
    assert "'critics': 'nan'" in ended["reason"] and "every loss was finite" in ended["reason"]
