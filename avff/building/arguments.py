"""The options that say what shards are built from, and the plan that they ask for: one place for every command that builds."""

import argparse
import os
from pathlib import Path
from typing import Any

from avff.build_config import PROFILES, BuildConfig
from avff.building.plan import DEFAULT_SHARD_BYTES, REJECTABLE, BuildPlan, plan_build
from avff.building.sources import Source, read_sources
from avff.building.splits import assign_splits, check_splits, drop_straddling
from avff.errors import ConfigError
from avff.media.boxes import load_boxes
from avff.strict_yaml import apply_override, from_dict


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="folder, CSV or one media file")
    parser.add_argument("--output", type=Path, required=True, help="shard directory to create or continue")
    _add_sources(parser.add_argument_group("what is known of the files"))
    _add_config(parser.add_argument_group("how they are stored"))
    running = parser.add_argument_group("how it runs; no effect on the result")
    running.add_argument("--num-workers", type=int, help="processes; 0: this one (default: one per CPU)")
    running.add_argument("--quiet", action="store_true", help="say nothing about progress")


def _add_sources(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--root", type=Path, help="folder that the CSV's names are relative to (default: the CSV's)")
    group.add_argument("--dataset", default="", help="name stored with every sample that has none")
    group.add_argument("--is-fake", type=int, choices=(0, 1), help="label of files that have none")
    group.add_argument("--extra-columns", default="", help="CSV columns to keep in the metadata, comma-separated")
    group.add_argument("--split", choices=("train", "val", "test"), default="", help="split of files that have none")
    group.add_argument("--val-fraction", type=float, default=0.0, help="split by a hash of the group_ids instead")
    group.add_argument("--test-fraction", type=float, default=0.0, help="likewise")
    group.add_argument("--drop-straddling", action="store_true", help="leave out clips whose groups lie in two splits")
    group.add_argument("--boxes", type=Path, help="CSV of face boxes, for --mode boxes (avff/media/boxes.py)")


def _add_config(group: argparse._ArgumentGroup) -> None:
    defaults = BuildConfig()
    group.add_argument(
        "--mode",
        choices=("faces", "frame", "boxes"),
        default="faces",
        help="faces: find, track and crop them; frame: store whole frames; boxes: crop by --boxes (default: faces)",
    )
    group.add_argument(
        "--profile",
        choices=tuple(PROFILES),
        default="pretrain",
        help="how video is stored: pretrain (5 frames per second, small) or evidence (25, fine detail); default: pretrain",
    )
    group.add_argument(
        "--segment-seconds",
        type=float,
        default=defaults.segment_seconds,
        help="longer videos are cut (default: %(default)s)",
    )
    group.add_argument(
        "--min-seconds",
        type=float,
        default=defaults.min_seconds,
        help="shorter ones get status TOO_SHORT (default: %(default)s)",
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="any other field of BuildConfig, such as frames_per_second=10 or faces.max_tracks=1",
    )  # fmt: skip
    group.add_argument("--reject", default="", help=f"leave out samples with these statuses: {','.join(REJECTABLE)}")
    group.add_argument(
        "--shard-bytes", type=int, default=DEFAULT_SHARD_BYTES, help="size of a shard (default: %(default)s)"
    )


def read_plan(options: argparse.Namespace) -> tuple[BuildPlan, dict[str, Any]]:
    """Lists the sources and returns the plan, with what the manifest records of the command line.

    Raises:
        ConfigError: an input, a label, a split or a value is impossible.
    """
    config = _build_config(options)
    kept, dropped = _split_sources(_find_sources(options), options)
    plan = plan_build(
        kept,
        options.output,
        config,
        shard_bytes=options.shard_bytes,
        reject=frozenset(_words(options.reject)),
        boxes=None if options.boxes is None else load_boxes(options.boxes),
    )
    return plan, {"input": str(options.input), "num_straddling_dropped": len(dropped)}


def num_workers(options: argparse.Namespace) -> int:
    return len(os.sched_getaffinity(0)) if options.num_workers is None else options.num_workers


def _build_config(options: argparse.Namespace) -> BuildConfig:
    names = ("mode", "profile", "segment_seconds", "min_seconds")
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    for override in options.set:
        apply_override(values, override)
    return from_dict(BuildConfig, values, where="--set")


def _find_sources(options: argparse.Namespace) -> list[Source]:
    return read_sources(
        options.input,
        root=options.root,
        dataset=options.dataset,
        split=options.split,
        is_fake=options.is_fake,
        extra_columns=tuple(_words(options.extra_columns)),
    )


def _split_sources(sources: list[Source], options: argparse.Namespace) -> tuple[list[Source], list[Source]]:
    """Returns (kept, dropped) sources with their splits."""
    val, test = options.val_fraction, options.test_fraction
    if val or test:
        if min(val, test) < 0 or val + test > 1:
            raise ConfigError(f"--val-fraction {val} and --test-fraction {test} have to be in [0, 1] together")
        if any(source.split for source in sources):
            raise ConfigError("the sources name their splits already; leave out --val-fraction and --test-fraction")
        sources = assign_splits(sources, val, test, by_component=not options.drop_straddling)
    kept, dropped = drop_straddling(sources) if options.drop_straddling else (sources, [])
    check_splits(kept)
    return kept, dropped


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
