"""Starts real processes: `launch(script, num_ranks, *arguments)` runs a worker of tests/engine/workers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avff.config import Config
from avff.strict_yaml import from_dict

WORKERS = Path(__file__).parent / "workers"
TIMEOUT_SECONDS = 1800


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """Runs `workers/SCRIPT` as one plain process, or under torchrun; callers judge it by the files that it wrote."""

    def run(script: str, num_ranks: int, *arguments: object) -> None:
        # --standalone takes any free port: 29500 may belong to another run on this machine.
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        launcher = torchrun if num_ranks > 1 else []
        command = [sys.executable, *launcher, str(WORKERS / script), *map(str, arguments)]
        # One thread per rank: the reference runs in the same arithmetic, and ranks do not fight for cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment
        )
        if done.returncode:
            # Not an assertion: now and then a rank of a gloo run fails after it has finished its work.
            sys.stderr.write(done.stdout[-3000:] + done.stderr[-6000:])

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
