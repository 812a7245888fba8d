"""Loader: clips per second by number of workers, beside webdataset's own pipeline and the usual way.

Four loaders take turns on the same clips (16 frames of 224 pixels at 5 per second with 3.2 s of sound by default):

  avff         avff's train loader on shards of profile `pretrain`: plan, index, checks, batches of uint8
  webdataset   webdataset's own pipeline on these shards, with the same decoders and batches
  usual        decord on the source file for the same windows, PIL resize, float32, Kaldi filter bank, torch DataLoader
  whole file   the same with 16 frames spread over the whole file and all of its sound, as Open-AVFF reads

The usual way sees whole frames also where --mode faces stores face crops.

clips_per_second_per_core counts the CPU seconds of all processes, the start of workers included, so it holds on a
busy machine; clips_per_second is by the clock. `page cache`: files are in memory. `cold`: the kernel was asked to
drop them before (posix_fadvise); disk_megabytes says what this machine then read from its disk, and a virtual disk
may have its own cache. to_usual compares clips per second per core with `usual` of the same turn.

--profile shows instead where the time of a clip of avff goes: cProfile's seconds by the clock, in one process and
best on a quiet machine; indented rows are parts of the one above, the others add up; written to loader-profile.json.
--memory reads steps, and shows whether the memory of trainer and workers grows; written to loader-memory.json.
"""

import argparse
import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from avff.bench import loader_memory
from avff.bench.loader_clips import find_clips, make_config
from avff.bench.loader_profile import profile_batches
from avff.bench.report import write_report
from avff.bench.stock_webdataset import webdataset_batches
from avff.bench.usual_loader import stretches, usual_batches, whole_files
from avff.config import Config, DecoderName
from avff.data.decoders import DEFAULT_DECODER
from avff.data.plan import Plan, build_plan
from avff.data.quarantine import Quarantine
from avff.data.selection import open_directories
from avff.data.stream import train_loader
from avff.data.views import AVView
from avff.errors import ConfigError

PREFETCH_STEPS = 2


class Contender(NamedTuple):
    """One loader.

    Attributes:
        batches: called with `num_workers`, reads all clips.
        files: that it reads.
    """

    name: str
    num_clips: int
    batches: Callable[..., Iterator[Any]]
    files: Sequence[Path]


class Turn(NamedTuple):
    clips_per_second: float
    clips_per_second_per_core: float
    disk_megabytes: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="FOLDER", help="media to build shards of (default: generated)")
    parser.add_argument(
        "--shards", type=Path, metavar="DIR", help="read these shards, and without --input nothing else"
    )
    parser.add_argument(
        "--mode",
        choices=("frame", "faces"),
        default="frame",
        help="what is stored of the media: whole frames or face crops (default frame)",
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="numbers of loader processes (default 0 2)"
    )
    parser.add_argument(
        "--clips", type=int, default=256, help="clips that avff and webdataset read per turn (default 256)"
    )
    parser.add_argument(
        "--usual-clips", type=int, default=16, help="clips that the usual way reads per turn (default 16)"
    )
    parser.add_argument("--batch", type=int, default=16, help="clips per batch (default 16)")
    parser.add_argument(
        "--decoder",
        choices=get_args(DecoderName),
        default=DEFAULT_DECODER,
        help="decoder of avff and webdataset (default %(default)s)",
    )
    parser.add_argument(
        "--windows", type=int, default=1, help="clips that avff cuts from a sample it has read (default 1)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often all is measured; medians are shown (default 2)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="show where avff's time for a clip goes, by cProfile, in one process"
    )
    parser.add_argument("--memory", action="store_true", help="read --steps steps of small clips and watch the memory")
    parser.add_argument("--steps", type=int, default=10_000, help="steps that --memory reads (default 10000)")


def run(arguments: argparse.Namespace) -> str:
    """Measures all loaders in turns and returns the table."""
    if arguments.memory:
        return loader_memory.run(arguments)
    torch.set_num_threads(1)  # as in a worker
    contenders = make_contenders(arguments)
    if arguments.profile:
        rows = profile_batches(contenders[0].batches, arguments.clips)
        return _report(arguments, "loader-profile.json", rows)
    turns: dict[tuple[str, int, str], list[Turn]] = {}
    for contender in contenders:
        measure(contender, 0)  # imports, caches
    for _ in range(arguments.rounds):
        for cache in ("page cache", "cold"):
            for num_workers in arguments.workers:
                for contender in contenders:
                    if cache == "cold":
                        drop(contender.files)
                    turns.setdefault((contender.name, num_workers, cache), []).append(measure(contender, num_workers))
    rows = [
        {
            "loader": name,
            "workers": num_workers,
            "cache": cache,
            **{field: statistics.median(getattr(turn, field) for turn in found) for field in Turn._fields},
            "to_usual": _ratio(found, turns.get(("usual", num_workers, cache))),
        }
        for (name, num_workers, cache), found in turns.items()
    ]
    return _report(arguments, "loader.json", rows)


def measure(contender: Contender, num_workers: int) -> Turn:
    """Reads all clips once, from the start of the workers to their end."""
    gc.collect()
    cpu_before, blocks_before = _used()
    start = time.perf_counter()
    for _ in contender.batches(num_workers=num_workers):
        pass
    seconds = time.perf_counter() - start
    cpu_after, blocks_after = _used()
    return Turn(
        contender.num_clips / seconds,
        contender.num_clips / (cpu_after - cpu_before),
        (blocks_after - blocks_before) * 512 / 1e6,
    )


def _used() -> tuple[float, int]:
    """Returns CPU seconds and disk blocks read, of this process and all that ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return cpu_seconds, own.ru_inblock + ended.ru_inblock


def drop(files: Sequence[Path]) -> None:
    """Asks the kernel to forget what it holds of some files."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # what is not on the disk yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _ratio(turns: list[Turn], usual: list[Turn] | None) -> float | None:
    if usual is None:
        return None
    pairs = zip(turns, usual, strict=True)
    return statistics.median(turn.clips_per_second_per_core / other.clips_per_second_per_core for turn, other in pairs)


def _report(arguments: argparse.Namespace, name: str, rows: Sequence[dict[str, Any]]) -> str:
    about = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items() if key != "run"
    }
    return f"{write_report(arguments.folder / name, rows, about)}\ndecoder {arguments.decoder}, mode {arguments.mode}"


# ------------------------------------------------------------------------------------------- what is read


def make_contenders(arguments: argparse.Namespace) -> list[Contender]:
    batch = arguments.batch
    require_even_shares(arguments.clips, batch, [0] if arguments.profile else arguments.workers)
    media, samples, directory = find_clips(arguments)
    config = make_config(directory, batch, arguments.windows)
    plan, view = build_plan(config, open_directories(config.data.train)), AVView(config.clip, arguments.decoder)
    tars = [directory.path / shard.name for shard in directory.shards]
    num_batches = arguments.clips // batch
    ours = partial(avff_batches, plan, view, config, num_steps=num_batches)
    stock = partial(webdataset_batches, tars, view, num_batches=num_batches, batch_size=batch)
    contenders = [
        Contender("avff", arguments.clips, ours, tars),
        Contender("webdataset", arguments.clips, stock, tars),
    ]
    if media is None:
        return contenders
    for name, found in (("usual", stretches(samples, media)), ("whole file", whole_files(samples, media))):
        usual = partial(usual_batches, found, config.clip, num_clips=arguments.usual_clips, batch_size=batch)
        files = sorted({part.path for part in found})
        contenders.append(Contender(name, arguments.usual_clips, usual, files))
    return contenders


def require_even_shares(num_clips: int, batch: int, workers: Sequence[int]) -> None:
    """Raises ConfigError where webdataset's workers could not share the batches evenly."""
    unit = batch * math.lcm(*(max(1, count) for count in workers))
    if num_clips < 1 or num_clips % unit:
        below = max(unit, num_clips // unit * unit)
        raise ConfigError(
            f"--clips {num_clips}: has to be a multiple of {unit}, so that --workers {' '.join(map(str, workers))} share "
            f"batches of {batch} evenly: write --clips {below} or {below + unit}, or another --batch"
        )


def avff_batches(plan: Plan, view: AVView, config: Config, *, num_steps: int, num_workers: int) -> Iterator[Any]:
    """Yields steps as a run of one rank reads them."""
    return train_loader(
        plan,
        view,
        rank=0,
        world_size=1,
        micro_batch_size=config.engine.micro_batch_size,
        group_size=config.group_size,
        num_workers=num_workers,
        prefetch_steps=PREFETCH_STEPS,
        steps=range(num_steps),
        timeout_seconds=config.faults.decode_timeout_seconds,
        quarantine=Quarantine((), samples_per_step=plan.samples_per_step),
    )
