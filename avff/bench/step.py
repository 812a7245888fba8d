"""Step: the training step, by stage, size, batch, precision, ZeRO stage, compilation and activation checkpointing.

Every combination of the lists is a real update: preprocessing, forward and backward passes, agreement of the ranks, DeepSpeed's
step. Rounds alternate between the combinations on the same clips, which stay in memory, and the table gives medians. `parts` are
seconds of preprocessing, of the rest of forward and backward, and of agreement and optimizer, measured in rounds of their own.
loss_change and norm_change compare the first update with that of the first row: what a setting does to the numbers.
With --loader the same updates also read real shards; data_tax is their seconds against those with clips in memory.
With --against eager the first row is an unfused fp32 implementation of the same network with the same weights and clips, and
speedup is each row's against it.

Runs in one process, or on every rank under torchrun (`torchrun --nproc-per-node 8 tools/bench.py step`): --batch is per rank.
"""

import argparse
import gc
import itertools
import statistics
from dataclasses import replace
from typing import Any

import torch

from avff import distributed
from avff.bench.report import write_report
from avff.bench.seek import repeat_clips
from avff.bench.step_subjects import EagerSubject, Measurement, OurSubject
from avff.build_config import BuildConfig
from avff.building.build import build_shards
from avff.building.plan import plan_build
from avff.building.sources import read_sources
from avff.config import Config, ShardSource, load_config
from avff.data.shards import open_directory, read_sample
from avff.engine import process
from avff.engine.rates import peak_flops
from avff.errors import ConfigError
from avff.media.synthetic import generate_general_videos
from avff.models.flops import training_gflops
from avff.strict_yaml import apply_override, from_dict

SWITCHES = {"off": False, "on": True}
GENERATED = "generated"
NUM_GENERATED, NUM_SAMPLES = 4, 1000
"""Clips drawn for `--loader generated`, and samples made of them under as many keys."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--stage", type=int, nargs="+", choices=(1, 3), default=[1], help="default: 1")
    parser.add_argument("--size", nargs="+", default=["base" if on_gpu else "small"], help="model sizes")
    parser.add_argument("--batch", type=int, nargs="+", default=[64 if on_gpu else 1], help="clips per rank and step")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    # One rank has nothing to share out: ZeRO would only copy.
    zero = [0] if distributed.world_size() == 1 else [1]
    parser.add_argument("--zero", type=int, nargs="+", choices=(0, 1, 2, 3), default=zero)
    parser.add_argument("--compile", nargs="+", choices=tuple(SWITCHES), default=["off", "on"] if on_gpu else ["off"])
    parser.add_argument("--activation-checkpointing", nargs="+", choices=("none", "cheap", "blocks"), default=["none"])
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="config values of all rows, as in `avff train`"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, after one to warm up (default 3)")
    parser.add_argument("--steps", type=int, default=10 if on_gpu else 1, help="updates per round")
    parser.add_argument(
        "--loader",
        metavar="CONFIG",
        help=f"also read the shards of this config's data section, or `{GENERATED}` ones",
    )
    parser.add_argument("--workers", type=int, default=4 if on_gpu else 1, help="loader processes for generated shards")
    parser.add_argument("--against", choices=("eager",), help="stage 1 only")


def run(arguments: argparse.Namespace) -> str:
    """Measures all settings and returns the table; a collective."""
    settings = make_settings(arguments)
    device = process.start(settings[0])
    rows = []
    for group in comparable(settings):
        rows += measure_group(group, device, arguments)
    about = {
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "ranks": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "settings": arguments.set,
        "loader": arguments.loader,
    }
    return write_report(arguments.folder / "step.json", rows, about) if distributed.is_main() else ""


# ------------------------------------------------------------------------------------------- what is measured


def make_settings(arguments: argparse.Namespace) -> list[Config]:
    lists = (
        arguments.stage,
        arguments.size,
        arguments.batch,
        arguments.precision,
        arguments.zero,
        arguments.compile,
        arguments.activation_checkpointing,
    )
    if arguments.against and arguments.stage != [1]:
        raise ConfigError("--against eager compares pretraining: write --stage 1")
    return [_config(arguments, *choice) for choice in itertools.product(*lists)]


def _config(
    arguments: argparse.Namespace,
    stage: int,
    size: str,
    batch: int,
    precision: str,
    zero: int,
    compiled: str,
    again: str,
) -> Config:
    total = batch * distributed.world_size()
    values: dict[str, Any] = {
        "name": "bench",
        "stage": "pretrain" if stage == 1 else "finetune",
        "model": {"size": size, "activation_checkpointing": again},
        "pretrain": {"contrastive_group_size": total},
        "data": {"labels": "real" if stage == 1 else "known"},
        # A long warm-up: updates are real, but so small that all settings see the same numbers.
        "optim": {"learning_rate": 1e-6},
        "engine": {
            "global_batch_size": total,
            "micro_batch_size": batch,
            "precision": precision,
            "zero_stage": zero,
            "compile": SWITCHES[compiled],
        },
    }
    for override in arguments.set:
        apply_override(values, override)
    return from_dict(Config, values, where="tools/bench.py step")


def comparable(settings: list[Config]) -> list[list[Config]]:
    """Settings that run the same network on the same clips, together."""

    def key(config: Config) -> tuple[str, str, int]:
        return config.stage, config.model.size, config.engine.micro_batch_size

    return [list(group) for _, group in itertools.groupby(settings, key)]


def shards_of(config: Config, arguments: argparse.Namespace) -> Config:
    """The config with the shards that `--loader` names, or with generated ones that fit its clip."""
    if arguments.loader != GENERATED:
        return replace(config, data=replace(load_config(arguments.loader).data, labels=config.data.labels))
    clip, folder = config.clip, arguments.folder / "step"
    shards = folder / f"shards-{clip.load_size}-{clip.frames_per_second:g}-{clip.duration_seconds:g}"
    if distributed.is_main() and not (shards / "manifest.json").is_file():
        build = BuildConfig(
            mode="frame",
            frames_per_second=clip.frames_per_second,
            side_pixels=max(64, clip.load_size),
            min_seconds=clip.duration_seconds,
        )
        built = folder / f"{shards.name}-clips"
        media = folder / "media"
        generate_general_videos(media, num_clips=NUM_GENERATED, seed=0, num_workers=1, progress=False)
        build_shards(plan_build(read_sources(media, split="train", is_fake=0), built, build))
        directory = open_directory(built)
        samples = [read_sample(directory, row) for row in directory.rows if row.can_hold(clip.duration_seconds)]
        repeat_clips(samples, shards, NUM_SAMPLES)
    distributed.barrier()
    data = replace(config.data, train=(ShardSource(path=str(shards)),), num_workers=arguments.workers)
    return replace(config, data=data)


# ------------------------------------------------------------------------------------------- measuring


def measure_group(configs: list[Config], device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures settings in turns. With the eager network, one setting at a time against it: two networks fit where all may not."""
    if not arguments.against:
        subjects = [OurSubject(config, device) for config in configs]
        return _rows(configs, _in_turns(list(subjects), arguments), device, arguments)
    rows: list[dict[str, Any]] = []
    eager = EagerSubject(replace(configs[0], engine=replace(configs[0].engine, precision="fp32")), device)
    for config in configs:
        found = _in_turns([eager, OurSubject(config, device)], arguments)
        compared = _rows([configs[0], config], found, device, arguments)
        rows += compared if not rows else compared[1:]
        gc.collect()
    return rows


def _in_turns(subjects: list[Any], arguments: argparse.Namespace) -> list[Measurement]:
    for subject in subjects:
        subject.warm_up()
    for _ in range(arguments.rounds):
        for subject in subjects:
            subject.time_round(arguments.steps)
    for subject in subjects:
        subject.time_parts()
        if arguments.loader and isinstance(subject, OurSubject):
            subject.time_loader(shards_of(subject.config, arguments), arguments.rounds * arguments.steps)
    return [subject.measurement() for subject in subjects]


def _rows(
    configs: list[Config], found: list[Measurement], device: torch.device, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    rows, first, peak = [], found[0], peak_flops(device)
    for config, seen in zip(configs, found, strict=True):
        seconds = statistics.median(seen.step_seconds)
        clips = config.engine.micro_batch_size
        # Of each round by itself: what else the machine does weighs on both alike.
        speedup = statistics.median(a / b for a, b in zip(first.step_seconds, seen.step_seconds, strict=True))
        row = {
            "stage": 1 if config.stage == "pretrain" else 3,
            "size": config.model.size,
            "batch": clips,
            **seen.columns,
            "clips_per_second": clips * distributed.world_size() / seconds,
            "step_seconds": seconds,
            "mfu": clips * training_gflops(config) * 1e9 / seconds / peak if peak else None,
            "peak_gib": seen.peak_gib,
            **seen.parts,
            "first_step_seconds": seen.first_step_seconds,
            "loss": seen.loss,
            "loss_change": seen.loss / first.loss - 1,
            "norm_change": seen.gradient_norm / first.gradient_norm - 1,
            "speedup": speedup,
        }
        if arguments.loader:
            row["data_tax"] = seen.loader_step_seconds / seconds if seen.loader_step_seconds else None
        rows.append(row)
    return rows
