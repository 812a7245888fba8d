"""Builds a shard directory from raw media.

    python tools/make_shards.py --input videos/ --output shards/kinetics --mode frame --is-fake 0
    python tools/make_shards.py --input metadata.csv --output shards/faces --profile evidence --num-workers 16

The input is a folder, one file, or a CSV; `video_name,target` is enough, and avff/building/tables.py lists the other
columns. Run the same command again after an interruption: what is finished is kept, and the result is the same.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from avff.build_config import PROFILES, BuildConfig
from avff.building.build import DEFAULT_SHARD_BYTES, REJECTABLE, build_shards
from avff.building.sources import Source, read_sources
from avff.building.splits import assign_splits, check_splits, drop_straddling
from avff.errors import AvffError, ConfigError
from avff.media.boxes import load_boxes
from avff.strict_yaml import apply_override, from_dict


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder, CSV or one media file")
    parser.add_argument("--output", type=Path, required=True, help="shard directory to create or continue")
    parser.add_argument("--root", type=Path, help="folder that the CSV's names are relative to (default: the CSV's)")
    parser.add_argument(
        "--mode",
        choices=("faces", "frame", "boxes"),
        default="faces",
        help="faces: find, track and crop them; frame: store whole frames; boxes: crop by --boxes (default: faces)",
    )
    parser.add_argument(
        "--profile",
        choices=tuple(PROFILES),
        default="pretrain",
        help="how video is stored: pretrain (5 frames per second, small) or evidence (25, fine detail); default: pretrain",
    )
    parser.add_argument("--boxes", type=Path, help="CSV of face boxes, for --mode boxes (avff/media/boxes.py)")
    parser.add_argument(
        "--segment-seconds",
        type=float,
        default=BuildConfig().segment_seconds,
        help="longer videos are cut (default: %(default)s)",
    )
    parser.add_argument(
        "--min-seconds",
        type=float,
        default=BuildConfig().min_seconds,
        help="shorter ones get status TOO_SHORT (default: %(default)s)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="any other field of BuildConfig, such as frames_per_second=10 or faces.max_tracks=1",
    )  # fmt: skip
    parser.add_argument("--dataset", default="", help="name stored with every sample that has none")
    parser.add_argument("--is-fake", type=int, choices=(0, 1), help="label of files that have none")
    parser.add_argument("--extra-columns", default="", help="CSV columns to keep in the metadata, comma-separated")
    parser.add_argument("--split", choices=("train", "val", "test"), default="", help="split of files that have none")
    parser.add_argument("--val-fraction", type=float, default=0.0, help="split by a hash of the group_ids instead")
    parser.add_argument("--test-fraction", type=float, default=0.0)
    parser.add_argument("--drop-straddling", action="store_true", help="leave out clips whose groups lie in two splits")
    parser.add_argument("--reject", default="", help=f"leave out samples with these statuses: {','.join(REJECTABLE)}")
    parser.add_argument(
        "--shard-bytes", type=int, default=DEFAULT_SHARD_BYTES, help="size of a shard (default: %(default)s)"
    )
    parser.add_argument("--num-workers", type=int, default=len(os.sched_getaffinity(0)), help="0: in this process")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        print(run(arguments))
    except AvffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished sources are kept, run the same command again", file=sys.stderr)
        return 130
    return 0


def run(arguments: argparse.Namespace) -> str:
    """Builds what the command line asks for and returns the summary."""
    started = time.monotonic()
    config = build_config(arguments)
    sources, dropped = split_sources(find_sources(arguments), arguments)
    summary = build_shards(
        sources,
        arguments.output,
        config,
        num_workers=arguments.num_workers,
        shard_bytes=arguments.shard_bytes,
        reject=frozenset(name for name in arguments.reject.split(",") if name),
        boxes=None if arguments.boxes is None else load_boxes(arguments.boxes),
        arguments={"input": str(arguments.input), "num_straddling_dropped": len(dropped)},
        progress=not arguments.quiet,
    )
    lines = [f"{arguments.output}: already built with these arguments"] if summary.already_complete else []
    if dropped:
        lines.append(f"{len(dropped)} clips lie between two splits and were left out")
    lines += [summary.as_text(), f"took {time.monotonic() - started:.1f} s"]
    return "\n".join(lines)


def build_config(arguments: argparse.Namespace) -> BuildConfig:
    values: dict[str, Any] = {
        "mode": arguments.mode,
        "profile": arguments.profile,
        "segment_seconds": arguments.segment_seconds,
        "min_seconds": arguments.min_seconds,
    }
    for override in arguments.set:
        apply_override(values, override)
    return from_dict(BuildConfig, values, where="--set")


def find_sources(arguments: argparse.Namespace) -> list[Source]:
    return read_sources(
        arguments.input,
        root=arguments.root,
        dataset=arguments.dataset,
        split=arguments.split,
        is_fake=arguments.is_fake,
        extra_columns=tuple(name for name in arguments.extra_columns.split(",") if name),
    )


def split_sources(sources: list[Source], arguments: argparse.Namespace) -> tuple[list[Source], list[Source]]:
    """Returns (kept, dropped) sources with their splits."""
    val, test = arguments.val_fraction, arguments.test_fraction
    if val or test:
        if min(val, test) < 0 or val + test > 1:
            raise ConfigError(f"--val-fraction {val} and --test-fraction {test} have to be in [0, 1] together")
        if any(source.split for source in sources):
            raise ConfigError("the sources name their splits already; leave out --val-fraction and --test-fraction")
        sources = assign_splits(sources, val, test, by_component=not arguments.drop_straddling)
    kept, dropped = drop_straddling(sources) if arguments.drop_straddling else (sources, [])
    check_splits(kept)
    return kept, dropped


if __name__ == "__main__":
    sys.exit(main())
