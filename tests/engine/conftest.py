"""Starts real processes: `launch(script, num_ranks, *arguments)` runs a worker of tests/engine/workers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import Forks

from avff.config import Config
from avff.strict_yaml import from_dict

WORKERS = Path(__file__).parent / "workers"


@pytest.fixture(scope="session")
def launch(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Runs `workers/SCRIPT` as one plain process, or as ranks of one job; callers judge it by the files that it wrote."""

    def run(script: str, num_ranks: int, *arguments: object) -> None:
        output = tmp_path_factory.mktemp("launch") / "printed.txt"
        codes = forks.run(WORKERS / script, *arguments, num_ranks=num_ranks, output=output)
        if any(codes):
            # Not an assertion: now and then a rank of a gloo run fails after it has finished its work.
            sys.stderr.write(f"exit codes {codes}\n{output.read_text()[-9000:]}")

    return run


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """As `tiny_config`, for runs that a whole module of tests looks at: the caller names `runs_dir`."""

    def make(stage: str = "pretrain", **overrides: Any) -> Config:
        values: dict[str, Any] = {
            "name": "tiny",
            "stage": stage,
            "clip": {"num_frames": 8, "image_size": 32, "hop_samples": 100, "num_mel_bins": 32, "num_slices": 4},
            "model": {"size": "tiny", "critic_width": 32},
            "pretrain": {"contrastive_group_size": 4},
            "data": {"num_workers": 0, "decoder": "decord", "labels": "real" if stage == "pretrain" else "known"},
            "engine": {"precision": "fp32", "num_threads": 1},
            "logging": {"progress": False, "wandb": "disabled"},
        }
        for name, value in overrides.items():
            values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
        return from_dict(Config, values, where="make_config")

    return make
