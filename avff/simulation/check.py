"""The formulas against real training on this machine with 1, 2 and 4 processes, under every ZeRO stage.

What a formula needs of the machine is measured apart from what it predicts: the seconds of one process's step, and of
all-reduces of a few sizes. Bytes need nothing of the machine.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from avff.bench.report import write_report
from avff.config import Config, save_config
from avff.errors import TrainingError
from avff.simulation.cluster import Links
from avff.simulation.memory import rank_memory
from avff.simulation.parameters import trainable_sizes
from avff.simulation.stage import scaled_config
from avff.simulation.timing import exposed_seconds
from avff.simulation.traffic import KINDS, ring_hops, ring_share, update_traffic
from avff.strict_yaml import from_dict

WORKER = "avff.simulation.real_run"
RANKS = (1, 2, 4)
THREADS = 1
"""Of each process."""
LEGEND = (
    "Ratios are predicted / measured. state: bytes held between updates; stepping: with gradients; all_reduce, all_gather,",
    "reduce_scatter: bytes of one update; step: its seconds, from those of one process's step and of timed all-reduces;",
    "CPU: core seconds of each process, without communication. Steps of several processes need a quiet machine.",
)


def check_config(size: str = "tiny", micro_batch_size: int = 8) -> Config:
    """Returns a small stage 1: all of its parts, little of each."""
    values = {
        "name": "check",
        "stage": "pretrain",
        "clip": {"num_frames": 8, "image_size": 64, "hop_samples": 100, "num_mel_bins": 64, "num_slices": 4},
        "model": {"size": size, "critic_width": 256},
        "pretrain": {"contrastive_group_size": micro_batch_size},
        "engine": {
            "global_batch_size": micro_batch_size,
            "micro_batch_size": micro_batch_size,
            "precision": "fp32",
            "num_threads": THREADS,
        },
    }
    return from_dict(Config, values, where="avff.simulation.check")


def run(folder: Path, num_updates: int = 10) -> str:
    """Trains, compares, and returns a table of predicted and measured, which check.json holds, too.

    With GPUs there is one for each process: so many of RANKS as there are.
    """
    ranks = [count for count in RANKS if not torch.cuda.is_available() or count <= torch.cuda.device_count()]
    config = check_config()
    measured = [measure(config, folder, count, num_updates) for count in ranks]
    alone = next(row for row in measured[0]["rows"] if row["zero_stage"] == 0)
    rows = []
    for count, found in zip(ranks, measured, strict=True):
        links = calibrated(found["all_reduces"], count)
        rows += [compare(config, row, links, alone) for row in found["rows"]]
    about = {"one_process": alone, "all_reduces": [found["all_reduces"] for found in measured]}
    return "\n".join([write_report(folder / "check.json", rows, about), "", *LEGEND])


def measure(config: Config, folder: Path, num_ranks: int, num_updates: int) -> dict[str, Any]:
    """Runs `avff.simulation.real_run` on so many processes.

    Raises:
        TrainingError: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, output = folder / "check.yaml", folder / f"check-{num_ranks}.json"
    save_config(config, path)
    output.unlink(missing_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    words = [sys.executable, *launcher, "-m", WORKER, str(path), str(output), str(num_updates)]
    done = subprocess.run(words, env=environment, check=False)
    if not output.is_file():
        raise TrainingError(f"{WORKER} on {num_ranks} ranks ended with code {done.returncode}, see above")
    return json.loads(output.read_text())


def calibrated(all_reduces: Sequence[tuple[int, float]], num_ranks: int) -> Links:
    """Returns the ring that the timed all-reduces look like: a hop by the smallest, bandwidth by the largest."""
    if num_ranks == 1:
        return Links(0.0, math.inf)
    (_, least_seconds), *_, (most_bytes, most_seconds) = sorted(all_reduces)
    moving = max(most_seconds - least_seconds, most_seconds / 2)
    return Links(
        least_seconds / ring_hops("all_reduce", num_ranks), ring_share("all_reduce", num_ranks) * most_bytes / moving
    )


def turns(num_ranks: int) -> float:
    """Returns how many times as long passes take where processes outnumber the cores."""
    return 1.0 if torch.cuda.is_available() else max(1.0, num_ranks * THREADS / len(os.sched_getaffinity(0)))


def compare(config: Config, measured: dict[str, Any], links: Links, alone: dict[str, Any]) -> dict[str, Any]:
    """Returns a row: of everything that was measured, the prediction divided by it.

    Args:
        measured: of `avff.simulation.real_run.measure`.
        alone: the same of a single process under stage 0, with the same micro batch.
    """
    ranks, stage = measured["ranks"], measured["zero_stage"]
    scaled = scaled_config(config, ranks, "weak")
    trained = trainable_sizes(config)
    scaled = replace(scaled, engine=replace(scaled.engine, zero_stage=stage))
    memory, traffic = rank_memory(scaled, trained, ranks), update_traffic(scaled, trained, ranks)
    passes = scaled.accumulation_steps(ranks)
    compute = alone["step_seconds"] * passes * turns(ranks)
    seconds = compute + exposed_seconds(traffic, links, ranks, compute, passes)
    sent = {kind: sum(c.times * c.num_bytes for c in traffic if c.kind == kind) for kind in KINDS}
    stepping = memory.state + (memory.reduced if stage < 3 else 0)  # stage 3 keeps room for gradients all the time
    counted = measured["num_bytes"]
    return {
        "ranks": ranks,
        "ZeRO": stage,
        "state MB": measured["state_bytes"] / 1e6,
        "state": memory.state / measured["state_bytes"],
        "stepping": stepping / measured["stepping_bytes"],
        **{kind: sent[kind] / counted[kind] if ranks > 1 and counted.get(kind) else None for kind in KINDS},
        "predicted ms": 1e3 * seconds,
        "measured ms": 1e3 * measured["step_seconds"],
        "CPU": alone["cpu_seconds"] * passes / measured["cpu_seconds"],
        "step": seconds / measured["step_seconds"],
    }
