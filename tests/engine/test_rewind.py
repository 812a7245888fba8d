"""A spike of the loss takes the run back to a checkpoint, past the clips read since, and to the bit."""

import json
from pathlib import Path

import pytest

from avff.engine.metrics_log import TIMING_FIELDS
from avff.files import sha256_of
from avff.json_lines import read_lines
from avff.run_folder import checkpoint_dir, committed_steps
from avff.strict_yaml import to_dict

pytestmark = [pytest.mark.slow, pytest.mark.faults]

NUM_STEPS = 20
SPIKE = 14
REWOUND = {
    "kind": "rewound",
    "from_step": 12,
    "first_plan_step": 12,
    "stop_plan_step": SPIKE + 1,
    "spike_step": SPIKE,
    "loss": 1000.0,
}


@pytest.fixture(scope="module")
def runs(launch, make_config, shard_directory, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rewinds")

    def job(name: str, *, spike_at: int | None = SPIKE, dies: bool = False, rewind_steps: int = 3) -> dict:
        config = make_config(
            name=name,
            runs_dir=str(folder),
            data={"train": [{"path": str(shard_directory.path)}]},
            optim={"num_steps": NUM_STEPS, "warmup_steps": 2, "ema_decay": 0.9},
            engine={"global_batch_size": 4, "micro_batch_size": 2, "checkpoint_every_steps": 4, "keep_checkpoints": 9},
            faults={"spike_factor": 50.0, "spike_window_steps": 20, "rewind_steps": rewind_steps},
            logging={"log_every_steps": 3},
        )
        return {"config": to_dict(config), "spike_at": spike_at, "dies": dies}

    def train(number: int, jobs: list[dict]) -> None:
        path = folder / f"jobs{number}.json"
        path.write_text(json.dumps(jobs))
        launch("rewind_worker.py", 2, path)

    # What the same decision gives where it stands before the start: the same clips without any going back.
    (folder / "reference").mkdir()
    (folder / "reference" / "decisions.jsonl").write_text(json.dumps(REWOUND) + "\n")
    train(1, [job("reference", spike_at=None), job("recorded", rewind_steps=0), job("rewound"), job("died", dies=True)])
    assert committed_steps(folder / "died")[-1] == 12
    assert read_lines(folder / "died" / "decisions.jsonl") == [REWOUND]
    train(2, [job("died", spike_at=None)])
    return folder


def _metrics(run: Path, but: str = "") -> list[dict]:
    lines = read_lines(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in {*TIMING_FIELDS, but}} for line in lines]


def _tensor_files(run: Path) -> dict[str, str]:
    directory = checkpoint_dir(run, NUM_STEPS)
    return {str(p.relative_to(directory)): sha256_of(p) for p in sorted(directory.rglob("*.safetensors"))}


@pytest.mark.parametrize("name", ["rewound", "died"])
def test_a_rewind_leaves_the_clips_out_to_the_bit(runs, name):
    assert read_lines(runs / name / "decisions.jsonl") == [REWOUND]
    assert _tensor_files(runs / name) == _tensor_files(runs / "reference")
    assert _metrics(runs / name, but="rewinds") == _metrics(runs / "reference", but="rewinds")
    assert len(_metrics(runs / name)) == 7
    assert _metrics(runs / name)[-1]["rewinds"] == 1


def test_a_spike_is_recorded_where_nothing_is_to_be_rewound(runs):
    assert read_lines(runs / "recorded" / "ledger.jsonl") == [{"kind": "spike", "step": SPIKE + 1, "loss": 1000.0}]
    assert _metrics(runs / "recorded")[-1]["spikes"] == 1
    assert read_lines(runs / "recorded" / "decisions.jsonl") == []
    assert _tensor_files(runs / "recorded") != _tensor_files(runs / "reference")
