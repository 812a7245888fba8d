"""Step: the training step, by stage, size, batch, precision, ZeRO stage, compilation and activation checkpointing.

Every combination of the lists is a real update: preprocessing, forward and backward passes, agreement of the ranks,
DeepSpeed's step. Rounds alternate between the combinations on the same clips, which stay in memory, and the table
gives medians.

columns of the table; - is what was not measured or does not exist on this device (mfu and peak_gib without a GPU):
  step                 who makes the update: avff (the engine's own), or eager (the network of --against eager)
  result               measured, or out of memory: the row then has no figures
  step_seconds         of one update, without waiting for its parts; clips_per_second counts all ranks
  mfu                  share of the GPU's dense bf16 peak, whatever the precision
  peak_gib             most GPU memory that the setting held: weights, optimizer, activations
  preprocess_seconds, network_seconds (forward and backward), optimizer_seconds (the ranks' agreement too)
                       from a round of their own, in which the device is waited for in between: they do not add up to
                       step_seconds
  first_step_seconds   of the first update, compilation and making the optimizer's state included
  loss_change, norm_change
                       first update's loss and gradient norm against the first row's: what a setting does to numbers
  speedup              step_seconds of the first row by those of this one, round by round

On one rank, settings that do not fit into memory together are measured one after the other, and one that does not
fit alone is a row that says so. With --loader the same updates also read real shards, from the page cache where they
have room: loader_clips_per_second, and data_tax_percent, by how much longer a step then takes. Generated shards hold
clips of the config's size and rate. With --against eager the first row is an unfused fp32 implementation of the same
network with the same weights and clips, and speedup is each row's against it.

Runs in one process, or on every rank under torchrun (`torchrun --nproc-per-node 8 tools/bench.py step`): --batch is
per rank.
"""

import argparse
import gc
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from avff import distributed
from avff.bench.report import write_report
from avff.bench.seek import repeat_clips
from avff.bench.step_subjects import EagerSubject, Measurement, OurSubject, Subject, is_out_of_memory
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
    # One rank has nothing to share out: ZeRO would only copy.
    zero = 0 if distributed.world_size() == 1 else 1

    def add_list(name: str, about: str, default: list[Any], **options: Any) -> None:
        about += f" (default on this machine: {' '.join(map(str, default))})"
        parser.add_argument(name, nargs="+", default=default, help=about, **options)

    add_list("--stage", "1: pretraining, 3: fine-tuning", [1], type=int, choices=(1, 3))
    add_list("--size", "size of the model: tiny, small, base, large", ["base" if on_gpu else "small"])
    add_list("--batch", "clips per rank and step", [64 if on_gpu else 1], type=int)
    add_list("--precision", "precision of forward and backward passes", ["fp32", "bf16"], choices=("fp32", "bf16"))
    add_list("--zero", "ZeRO stage", [zero], type=int, choices=(0, 1, 2, 3))
    add_list("--compile", "whether blocks are compiled", ["off", "on"] if on_gpu else ["off"], choices=tuple(SWITCHES))
    add_list(
        "--activation-checkpointing",
        "what the backward pass computes again instead of keeping it",
        ["none"],
        choices=("none", "cheap", "blocks"),
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="config values of all rows, as in `avff train`"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often all is measured, after one update to warm up (default 3)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10 if on_gpu else 1,
        help="updates per round (default on this machine: %(default)s)",
    )
    parser.add_argument(
        "--loader",
        metavar="CONFIG",
        help=f"also read the shards of this config's data section, or `{GENERATED}` ones",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=4 if on_gpu else 1,
        help="loader processes for generated shards (default on this machine: %(default)s)",
    )
    parser.add_argument("--against", choices=("eager",), help="compare with an unfused fp32 network; stage 1 only")


def run(arguments: argparse.Namespace) -> str:
    """Measures all settings and returns the table; a collective."""
    settings = make_settings(arguments)
    device = process.start(settings[0])
    about = {
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "ranks": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "settings": arguments.set,
        "loader": arguments.loader,
    }
    rows: list[dict[str, Any]] = []
    report = ""
    for group in comparable(settings):
        rows += measure_group(group, device, arguments)
        if distributed.is_main():  # after every group: what is measured stays, however the run ends
            report = write_report(arguments.folder / "step.json", rows, about)
    return report


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
        subjects: list[Subject] = [OurSubject(config, device) for config in configs]
        return _rows(configs, _measured(subjects, arguments), device, arguments)
    rows: list[dict[str, Any]] = []
    eager = EagerSubject(replace(configs[0], engine=replace(configs[0].engine, precision="fp32")), device)
    for config in configs:
        found = _measured([eager, OurSubject(config, device)], arguments, kept=[eager])
        compared = _rows([config, config], found, device, arguments)
        rows += compared if not rows else compared[1:]
    _release([eager])
    return rows


def _measured(
    subjects: Sequence[Subject], arguments: argparse.Namespace, kept: Sequence[Subject] = ()
) -> list[Measurement]:
    """Measures in turns; where memory has no room for all, one after the other. Only `kept` hold memory afterwards."""
    try:
        found = _in_turns(subjects, arguments)
    except RuntimeError as error:
        # With several ranks the others would wait for this one.
        if not is_out_of_memory(error) or distributed.world_size() > 1:
            raise
        found = None
    if found is not None:
        _release([subject for subject in subjects if subject not in kept])
        return found
    _release(subjects)  # out here, since the error refers to what they held
    if len(subjects) == 1:
        return [subjects[0].out_of_memory()]
    return [one for subject in subjects for one in _measured([subject], arguments)]


def _release(subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        subject.release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_turns(subjects: Sequence[Subject], arguments: argparse.Namespace) -> list[Measurement]:
    for subject in subjects:
        subject.warm_up()
    for _ in range(arguments.rounds):
        for subject in subjects:
            subject.time_round(arguments.steps)
    for subject in subjects:
        subject.time_parts(arguments.steps)
        if arguments.loader and isinstance(subject, OurSubject):
            subject.time_loader(shards_of(subject.config, arguments), arguments.rounds * arguments.steps)
    return [subject.measurement() for subject in subjects]


def _rows(
    configs: list[Config], found: list[Measurement], device: torch.device, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Returns a row per setting, compared with the first that fits."""
    first = next((seen for seen in found if seen.step_seconds), found[0])
    return [_row(config, seen, first, device, arguments) for config, seen in zip(configs, found, strict=True)]


def _row(
    config: Config, seen: Measurement, first: Measurement, device: torch.device, arguments: argparse.Namespace
) -> dict[str, Any]:
    clips, peak = config.engine.micro_batch_size, peak_flops(device)
    seconds = statistics.median(seen.step_seconds) if seen.step_seconds else None
    # Of each round by itself: what else the machine does weighs on both alike.
    ratios = [a / b for a, b in zip(first.step_seconds, seen.step_seconds, strict=False)]
    row = {
        "stage": 1 if config.stage == "pretrain" else 3,
        "size": config.model.size,
        "batch": clips,
        **seen.columns,
        "result": "measured" if seconds else "out of memory",
        "clips_per_second": clips * distributed.world_size() / seconds if seconds else None,
        "step_seconds": seconds,
        "mfu": clips * training_gflops(config) * 1e9 / seconds / peak if seconds and peak else None,
        "peak_gib": seen.peak_gib,
        **seen.parts,
        "first_step_seconds": seen.first_step_seconds,
        "loss": seen.loss,
        "loss_change": _change(seen.loss, first.loss),
        "norm_change": _change(seen.gradient_norm, first.gradient_norm),
        "speedup": statistics.median(ratios) if ratios else None,
    }
    if arguments.loader:
        read = seen.loader_step_seconds
        row["loader_clips_per_second"] = clips * distributed.world_size() / read if read else None
        row["data_tax_percent"] = 100 * (read / seconds - 1) if read and seconds else None
    return row


def _change(value: float | None, reference: float | None) -> float | None:
    return value / reference - 1 if value is not None and reference else None
