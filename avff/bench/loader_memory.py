"""Whether the memory of the trainer and its loader workers grows over many steps of small clips."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from avff.bench import seek
from avff.bench.report import write_report
from avff.config import Config
from avff.data.plan import build_plan
from avff.data.quarantine import Quarantine
from avff.data.selection import open_directories
from avff.data.stream import train_loader
from avff.data.views import AVView
from avff.strict_yaml import from_dict

NUM_READINGS = 10
NUM_SAMPLES = 500
BATCH = 2


def run(arguments: argparse.Namespace) -> str:
    """Reads the steps with the largest number of workers and returns a table of memory by step.

    Its last row is the growth per 1000 steps, by least squares over the second half of the readings.
    """
    config = small_config(arguments.folder)
    plan = build_plan(config, open_directories(config.data.train))
    loader = train_loader(
        plan,
        AVView(config.clip),
        rank=0,
        world_size=1,
        micro_batch_size=BATCH,
        group_size=config.group_size,
        num_workers=max(arguments.workers),
        prefetch_steps=config.data.prefetch_steps,
        steps=range(arguments.steps),
        timeout_seconds=config.faults.decode_timeout_seconds,
        quarantine=Quarantine((), samples_per_step=plan.samples_per_step),
    )
    every = max(1, arguments.steps // NUM_READINGS)
    rows = [reading(str(batch.step + 1)) for batch in loader if (batch.step + 1) % every == 0]
    rows.append(slopes(rows[len(rows) // 2 :]))
    about = {"steps": arguments.steps, "workers": max(arguments.workers), "clips_per_step": BATCH}
    return write_report(arguments.folder / "loader-memory.json", rows, about)


def reading(step: str) -> dict[str, Any]:
    """Returns megabytes of this process and of all its children: resident, and private to each (USS)."""
    own = psutil.Process()
    infos = {"trainer": [own.memory_full_info()], "workers": [c.memory_full_info() for c in own.children()]}
    columns = {
        f"{who}_{kind}_megabytes": sum(getattr(info, kind) for info in found) / 1e6
        for who, found in infos.items()
        for kind in ("rss", "pss", "uss")
    }
    return {"step": step, **columns}


def slopes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [int(row["step"]) / 1000 for row in rows]
    names = [name for name in rows[0] if name != "step"]
    return {
        "step": "growth per 1000",
        **{name: float(np.polyfit(steps, [row[name] for row in rows], 1)[0]) for name in names},
    }


def small_config(folder: Path) -> Config:
    """Returns a config of 64-pixel clips, and makes their shards."""
    shards = folder / f"shards_{NUM_SAMPLES}"
    if not (shards / "manifest.json").is_file():
        seek.repeat_clips(seek.few_clips(folder), shards, NUM_SAMPLES)
    values = {
        "name": "bench",
        "stage": "pretrain",
        "clip": {"frames_per_second": 10.0, "image_size": 64, "hop_samples": 100, "num_mel_bins": 64},
        "pretrain": {"contrastive_group_size": BATCH},
        "data": {"train": [{"path": str(shards)}]},
        "engine": {"global_batch_size": BATCH, "micro_batch_size": BATCH},
    }
    return from_dict(Config, values, where="tools/bench.py")
