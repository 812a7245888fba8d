#!/usr/bin/env python
"""Measures what avff promises about time; prints a table and writes JSON with the machine and the versions."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avff import __version__
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
from avff.errors import AvffError, TrainingError
from avff.files import write_durably
from avff.media.synthetic import generate_general_videos
from avff.strict_yaml import from_dict

REPOSITORY = Path(__file__).parents[1]
NUM_CLIPS = 4
SAMPLES_PER_SHARD = 250

SEEK_TEXT = """\
Starts reading anew at each step, as a restarted run does: opens the shards, makes the plan, and reads the first batch.
The order is arithmetic, so nothing is replayed and the ratio of the times is 1. Rounds alternate between the steps,
since a busy machine would favour whichever comes first; the table gives medians.
"""
CHECKPOINT_TEXT = """\
Trains a stack of linear layers and saves it, with training going on meanwhile (overlap 1) and without (overlap 0), on
each number of ranks over gloo or NCCL. blocked_ratio is the share of a save for which training stands still, and
slower_steps how many times as long a step takes while files are written, which on a machine whose cores the ranks fill
is the price of overlapping. A save is 16 bytes per parameter and the weight files another 8.
"""
EPILOG = """\
examples:
  python tools/bench.py seek
  python tools/bench.py checkpoint --parameters 100_000_000 --folder /scratch/bench
  python tools/bench.py seek --config configs/stage1_kinetics.yaml --steps 100 100000
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        print(arguments.run(arguments))
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    seek = benchmarks.add_parser(
        "seek",
        help="time to the first batch after a restart at an early and at a late step",
        description=SEEK_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    seek.set_defaults(run=bench_seek)
    seek.add_argument("--config", type=Path, metavar="CONFIG", help="read its shards instead of generated ones")
    seek.add_argument("--steps", type=int, nargs="+", default=[100, 100_000], help="default: 100 100000")
    seek.add_argument("--rounds", type=int, default=5, help="restarts per step (default 5)")
    seek.add_argument("--samples", type=int, default=2000, help="generated samples (default 2000)")
    seek.add_argument("--folder", type=Path, default=Path("runs/bench"), help="for generated shards and seek.json")
    checkpoint = benchmarks.add_parser(
        "checkpoint",
        help="seconds for which a save holds up training, against its whole duration",
        description=CHECKPOINT_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checkpoint.set_defaults(run=bench_checkpoint)
    checkpoint.add_argument("--parameters", type=int, default=20_000_000, help="default: 20 million")
    checkpoint.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    checkpoint.add_argument("--saves", type=int, default=3, help="saves of each kind, medians are shown (default 3)")
    checkpoint.add_argument("--folder", type=Path, default=Path("runs/bench"), help="disk to write to")
    return parser.parse_args(argv)


# ------------------------------------------------------------------------------------------- checkpoint


def bench_checkpoint(arguments: argparse.Namespace) -> str:
    """Starts `bench_saves.py` for each number of ranks and returns the table."""
    rows = []
    for num_ranks in arguments.ranks:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        output = arguments.folder / f"saves-{num_ranks}.json"
        words = [arguments.folder / "saves", output, arguments.parameters, arguments.saves]
        worker = REPOSITORY / "tools" / "workers" / "bench_saves.py"
        arguments.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([sys.executable, *launcher, str(worker), *map(str, words)], check=False)
        if done.returncode:
            raise TrainingError(f"{worker.name} on {num_ranks} ranks ended with code {done.returncode}, see above")
        rows += json.loads(output.read_text())
    about = {"parameters": arguments.parameters, "saves": arguments.saves, "folder": str(arguments.folder)}
    return write_report(arguments.folder / "checkpoint.json", rows, about)


# ------------------------------------------------------------------------------------------- seek


def bench_seek(arguments: argparse.Namespace) -> str:
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
        quarantine=Quarantine((), global_batch_size=config.engine.global_batch_size),
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


# ------------------------------------------------------------------------------------------- reports


def write_report(path: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """Writes rows, machine and versions as JSON, and returns them as text.

    Args:
        rows: equal columns, numbers only.
        about: what was measured.
    """
    report = {**about, "machine": machine(), "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(report, indent=1) + "\n").encode())
    names = list(rows[0])
    lines = ["".join(f"{name:>16}" for name in names)]
    lines += [
        "".join(f"{row[name]:16.4f}" if isinstance(row[name], float) else f"{row[name]:16}" for name in names)
        for row in rows
    ]
    return "\n".join(
        [*lines, ", ".join(f"{name} {value}" for name, value in report["machine"].items()), f"written {path}"]
    )


def machine() -> dict[str, Any]:
    """Returns what figures depend on: processor, load, versions, revision of the code."""
    revision = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "webdataset", "decord")},
        "avff": __version__,
        "revision": revision.stdout.strip() or "unknown",
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
