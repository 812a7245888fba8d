"""What `tools/bench.py loader` reads: source files, shards of them, and a config for these."""

import argparse
from pathlib import Path

from avff.bench.media import generated_heads
from avff.bench.seek import repeat_clips
from avff.build_config import BuildConfig
from avff.building.build import build_shards
from avff.building.plan import plan_build
from avff.building.sources import read_sources
from avff.config import Config
from avff.data.samples import Sample
from avff.data.shards import ShardDirectory, open_directory, read_sample
from avff.errors import ConfigError
from avff.media.synthetic import generate_general_videos
from avff.strict_yaml import from_dict

NUM_GENERATED = 4


def make_config(directory: ShardDirectory, batch: int, windows: int) -> Config:
    """Returns a config that reads all of a directory; labels do not matter here."""
    values = {
        "name": "bench",
        "stage": "finetune",
        "data": {
            "train": [{"path": str(directory.path)}],
            "train_split": "",
            "labels": "any",
            "windows_per_sample": windows,
        },
        "engine": {"global_batch_size": batch, "micro_batch_size": batch},
    }
    return from_dict(Config, values, where="tools/bench.py")


def find_clips(arguments: argparse.Namespace) -> tuple[Path | None, list[Sample], ShardDirectory]:
    """Returns the folder of source files, usable samples of them, and shards to read.

    Shards that are built here hold every sample under many keys, so that no clip is read twice in a turn.

    Raises:
        ConfigError: no sample of the media can be used.
    """
    if arguments.shards:
        directory = open_directory(arguments.shards)
        return arguments.input, usable_samples(directory), directory
    folder = arguments.folder / "loader" / (arguments.input.name if arguments.input else "generated")
    media = arguments.input or generated_media(folder, arguments.mode)
    built = folder / arguments.mode / "clips"
    config = BuildConfig(mode=arguments.mode)
    build_shards(plan_build(read_sources(media, split="train", is_fake=0), built, config))
    directory = open_directory(built)
    samples = usable_samples(directory)
    if not samples:
        reasons = sorted({reason for row in directory.rows for reason in row.status})
        wanted = "talking faces, or write --mode frame" if arguments.mode == "faces" else "videos with sound"
        raise ConfigError(
            f"{media}: no usable sample in --mode {arguments.mode} ({', '.join(reasons) or built / 'rejects.csv'}): name "
            f"an --input folder with {wanted}"
        )
    shards = folder / arguments.mode / f"shards_{arguments.clips}"
    if not (shards / "manifest.json").is_file():
        repeat_clips(samples, shards, arguments.clips)
    return media, samples, open_directory(shards)


def usable_samples(directory: ShardDirectory) -> list[Sample]:
    return [read_sample(directory, row) for row in directory.rows if row.status == ("OK",)]


def generated_media(folder: Path, mode: str) -> Path:
    if mode == "faces":
        return generated_heads(folder / "heads", NUM_GENERATED) / "videos"
    generate_general_videos(folder / "media", num_clips=NUM_GENERATED, seed=0, num_workers=1, progress=False)
    return folder / "media" / "videos"
