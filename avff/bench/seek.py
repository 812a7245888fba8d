"""Restarts: the time to the first batch after a restart at an early and at a late step.

Starts reading anew at each step, as a restarted run does: opens the shards, makes the plan, and reads the first batch.
The order is arithmetic, so nothing is replayed and the ratio of the times is 1. Rounds alternate between the steps,
since a busy machine would favour whichever comes first; the table gives medians.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avff.bench.report import write_report
from avff.build_config import BuildConfig
from avff.building.build import build_shards
from avff.building.plan import plan_build
from avff.building.sources import read_sources
from avff.config import Config, load_config
from avff.data.plan import build_plan
from avff.data.quarantine import Quarantine
from avff.data.samples import Sample
from avff.data.selection import open_directories
from avff.data.shards import open_directory, read_sample, write_manifest, write_shard
from avff.data.stream import train_loader
from avff.data.views import AVView
from avff.media.synthetic import generate_general_videos
from avff.strict_yaml import from_dict

NUM_CLIPS = 4
SAMPLES_PER_SHARD = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="CONFIG", help="read its shards instead of generated ones")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[100, 100_000], help="steps to restart at (default 100 100000)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="restarts per step, medians are shown (default 5)")
    parser.add_argument("--samples", type=int, default=2000, help="how many samples to generate (default 2000)")


def run(arguments: argparse.Namespace) -> str:
    """Measures restarts at several steps and returns the table."""
    config = load_config(arguments.config) if arguments.config else generated_config(arguments)
    rounds: dict[int, list[dict[str, float]]] = {step: [] for step in arguments.steps}
    for _ in range(arguments.rounds):
        for step in arguments.steps:
            rounds[step].append(time_restart(config, step))
    rows = [
        {"step": step, **{name: statistics.median(r[name] for r in found) for name in found[0]}}
        for step, found in rounds.items()
    ]
    for row in rows:
        row["ratio"] = row["total_seconds"] / rows[0]["total_seconds"]
    about = {"rounds": arguments.rounds, "shards": [source.path for source in config.data.train]}
    return write_report(arguments.folder / "seek.json", rows, about)


def time_restart(config: Config, step: int) -> dict[str, float]:
    """Returns the seconds from nothing opened to the first batch of a step, in parts."""
    start = time.perf_counter()
    plan = build_plan(config, open_directories(config.data.train), open_directories(config.data.validation))
    planned = time.perf_counter()
    plan.entries(step)
    found = time.perf_counter()
    loader = train_loader(
        plan,
        AVView(config.clip),
        rank=0,
        world_size=1,
        micro_batch_size=config.engine.micro_batch_size,
        group_size=config.group_size,
        num_workers=config.data.num_workers,
        prefetch_steps=1,
        steps=range(step, step + 1),
        timeout_seconds=config.faults.decode_timeout_seconds,
        quarantine=Quarantine((), samples_per_step=plan.samples_per_step),
    )
    try:
        next(loader)
    finally:
        loader.close()
    stop = time.perf_counter()
    return {
        "open_seconds": planned - start,
        "seek_seconds": found - planned,
        "read_seconds": stop - found,
        "total_seconds": stop - start,
    }


def generated_config(arguments: argparse.Namespace) -> Config:
    """Makes shards of a few generated clips under many keys, and a config that reads them."""
    shards = arguments.folder / f"shards_{arguments.samples}"
    if not (shards / "manifest.json").is_file():
        repeat_clips(few_clips(arguments.folder), shards, arguments.samples)
    values = {
        "name": "bench",
        "stage": "pretrain",
        "clip": {"frames_per_second": 10.0, "image_size": 64, "hop_samples": 100, "num_mel_bins": 64},
        "pretrain": {"contrastive_group_size": 16},
        "data": {"train": [{"path": str(shards)}], "num_workers": 0},
        "engine": {"global_batch_size": 16, "micro_batch_size": 16},
    }
    return from_dict(Config, values, where="tools/bench.py")


def few_clips(folder: Path) -> list[Sample]:
    generate_general_videos(folder / "media", num_clips=NUM_CLIPS, seed=0, num_workers=1)
    config = BuildConfig(mode="frame", frames_per_second=10.0, segment_seconds=1.6, min_seconds=1.6)
    build_shards(plan_build(read_sources(folder / "media", split="train", is_fake=0), folder / "clips", config))
    directory = open_directory(folder / "clips")
    return [read_sample(directory, row) for row in directory.rows if row.status == ("OK",)]


def repeat_clips(clips: list[Sample], shards: Path, num_samples: int) -> None:
    def samples(start: int, stop: int) -> Iterator[Sample]:
        for number in range(start, stop):
            clip = clips[number % len(clips)]
            yield clip._replace(metadata=replace(clip.metadata, key=f"clip{number:08d}"))

    starts = range(0, num_samples, SAMPLES_PER_SHARD)
    infos = [
        write_shard(shards, f"shard-{i:06d}.tar", samples(start, min(num_samples, start + SAMPLES_PER_SHARD)))
        for i, start in enumerate(starts)
    ]
    write_manifest(shards, infos, build={}, arguments={"made_by": "tools/bench.py"}, rejects={})
