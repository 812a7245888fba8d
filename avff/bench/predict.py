"""Predict: seconds of video per second, from a media file to a verdict, split into its phases.

Phases are measured one after the other on one thread: decoding (each file twice: to look and to cut), faces (the
small copies and the detector), cut_encode (crops, h264, FLAC, metadata) and windows (decoding of what was encoded).
`prepare` is all of that as `avff predict` does it, in this process (workers 0) and on --workers cores; rounds
alternate between them, and the table gives medians. `model` is the network on all of torch's threads, measured on
--windows windows and scaled to all of them, with random weights of --size; another device changes this row alone.

Below the table: how decoding and faces together compare with real time on two cores, by the CPU seconds of
`decode+faces`, and on --workers cores all of `prepare`, by the clock, and the model. The aim, above 1 on two cores,
is for 720p. Files that cannot be prepared are left out and named.
"""

import argparse
import itertools
import os
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from avff.batch import Clip
from avff.bench.generated_head import generated_head
from avff.bench.report import write_report
from avff.build_config import PROFILES, BuildConfig
from avff.building.samples import build_samples
from avff.building.sources import VIDEO_SUFFIXES, single_source
from avff.config import Config
from avff.data.views import AVView
from avff.errors import MediaError
from avff.inference.avff_detector import AvffDetector
from avff.inference.detector import choose_device
from avff.inference.predict_files import prepare_files
from avff.media.crops import FacePath
from avff.media.faces import FaceScanner, one_torch_thread
from avff.media.helpers import Helpers
from avff.media.reader import probe, read_frames
from avff.models.build import build_classifier
from avff.preprocess import Preprocess
from avff.strict_yaml import from_dict

T = TypeVar("T")
AIM_CORES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", type=Path, nargs="+", default=[], help="media files or folders (default: a generated talking head)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the generated file (default 20)")
    parser.add_argument(
        "--height", type=int, default=720, help="picture height of the generated file, 16:9 (default 720)"
    )
    parser.add_argument(
        "--profile", choices=tuple(PROFILES), default="evidence", help="how clips are encoded (default evidence)"
    )
    parser.add_argument("--size", default="base", help="size of the model: tiny, small, base or large (default base)")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="cores that prepare files (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often all is measured; medians are shown (default 1)"
    )
    parser.add_argument(
        "--windows", type=int, default=2, help="windows that the model scores per round, in one batch (default 2)"
    )
    parser.add_argument("--device", default="auto", help="where the model runs: auto, cpu or cuda (default auto)")


class Cost(NamedTuple):
    """CPU seconds of this process and those that ended meanwhile, and seconds on the clock."""

    cpu_seconds: float
    wall_seconds: float


def run(arguments: argparse.Namespace) -> str:
    """Measures every phase and returns the table."""
    found = (
        media_files(arguments.input)
        if arguments.input
        else [generated_head(arguments.folder, arguments.height, arguments.seconds)]
    )
    detector = random_detector(arguments.size, arguments.profile, arguments.device)
    problems = find_problems(found, detector, arguments.workers)
    paths = [path for path in found if path not in problems]
    rounds: list[dict[tuple[str, int], Cost]] = []
    for _ in range(arguments.rounds):
        rounds.append(time_round(paths, detector, arguments))
    video_seconds = sum(max(float(frame.stop_seconds) for frame in read_frames(path)) for path in paths)
    rows = [_row(phase, workers, [r[phase, workers] for r in rounds], video_seconds) for phase, workers in rounds[0]]
    about = {
        "files": [str(path) for path in paths],
        "skipped_files": [str(path) for path in problems],
        "video_seconds": video_seconds,
        "profile": arguments.profile,
        "size": arguments.size,
        "device": str(detector.device),
        "rounds": arguments.rounds,
        "torch_threads": torch.get_num_threads(),
    }
    lines = [write_report(arguments.folder / "predict.json", rows, about), *verdicts(rows, heights(paths))]
    if problems:
        lines += [f"{len(problems)} of {len(found)} files left out:", *problems.values()]
    return "\n".join(lines)


def find_problems(paths: Sequence[Path], detector: AvffDetector, workers: int) -> dict[Path, str]:
    """Returns why files cannot be prepared, of those that cannot; all are in the page cache then.

    Raises:
        MediaError: none can be prepared.
    """
    problems: dict[Path, str] = {}
    for number, prepared in prepare_files(paths, detector, num_workers=workers):
        if prepared is not None and prepared.part is None:
            path = paths[number]
            problems[path] = f"{path}: {prepared.problem.replace(f'{path}: ', '')}"
    if len(problems) == len(paths):
        raise MediaError("\n".join(["no file can be prepared; name others with --input", *problems.values()]))
    return problems


def heights(paths: Sequence[Path]) -> str:
    """Returns the short sides of all files' pictures, `240p, 720p`."""
    sides = {min(info.width, info.height) for info in map(probe, paths)}
    return ", ".join(f"{side}p" for side in sorted(sides))


def verdicts(rows: Sequence[dict[str, Any]], measured_heights: str) -> Iterator[str]:
    """Yields how the phases compare with real time, as sentences."""
    speed = {row["phase"]: row for row in rows}  # of `prepare`, the one with workers
    on_two_cores = AIM_CORES * speed["decode+faces"]["video_seconds_per_cpu_second"]
    yield (
        f"decode and faces on {AIM_CORES} cores: {on_two_cores:.3g} times real time (aim: above 1 at 720p; measured here: "
        f"{measured_heights})"
    )
    prepare = speed["prepare"]
    yield f"prepare on {max(1, prepare['workers'])} cores: {prepare['video_seconds_per_second']:.2f} times real time"
    if "model" in speed:
        yield f"model, apart: {speed['model']['video_seconds_per_second']:.3g} times real time"
    else:
        yield "model: not measured, no window of these files could be made"


def _row(phase: str, workers: int, costs: list[Cost], video_seconds: float) -> dict[str, Any]:
    cpu_seconds, wall_seconds = (statistics.median(values) for values in zip(*costs, strict=True))
    return {
        "phase": phase,
        "workers": workers,
        "cpu_seconds": cpu_seconds,
        "wall_seconds": wall_seconds,
        "video_seconds_per_cpu_second": video_seconds / cpu_seconds,
        "video_seconds_per_second": video_seconds / wall_seconds,
    }


def time_round(
    paths: Sequence[Path], detector: AvffDetector, arguments: argparse.Namespace
) -> dict[tuple[str, int], Cost]:
    """Returns what every phase cost, by its name and its number of workers."""
    with one_torch_thread():
        phases = time_phases(paths, detector)
    found = {(name, 0): cost for name, cost in phases.items()}
    windows: list[Clip] = []
    for workers in sorted({0, arguments.workers}):
        with one_torch_thread():
            windows, found["prepare", workers] = timed(lambda w=workers: prepare(paths, detector, w))
    if windows:
        found["model", 0] = time_model(detector, windows, arguments.windows)
    return found


def time_phases(paths: Sequence[Path], detector: AvffDetector) -> dict[str, Cost]:
    """Measures the phases of preparing on one thread. Faces are looked for as in `avff.media.clips`."""
    build = detector.require_build()
    _, decode = timed(lambda: [sum(1 for _ in read_frames(path)) for path in paths])
    _make_scanner(paths[0], build)  # whose networks are loaded by then, as in any but the first file
    _, look = timed(lambda: [_find_faces(path, build) for path in paths])
    samples, cut = timed(lambda: [sample for path in paths for sample in build_samples(single_source(path), build)])
    _, windows = timed(lambda: [detector.view.evaluation_clips(sample) for sample in samples])
    faces = Cost(*(a - b for a, b in zip(look, decode, strict=True)))
    return {
        "decode": Cost(*(2 * value for value in decode)),
        "faces": faces,
        "decode+faces": Cost(*(2 * a + b for a, b in zip(decode, faces, strict=True))),
        "cut_encode": Cost(*(a - b - c for a, b, c in zip(cut, look, decode, strict=True))),
        "windows": windows,
    }


def _find_faces(path: Path, build: BuildConfig) -> list[FacePath]:
    scanner = _make_scanner(path, build)
    for _ in scanner.watch(read_frames(path)):
        pass
    return scanner.take_tracks(np.zeros(1), float("inf"))


def _make_scanner(path: Path, build: BuildConfig) -> FaceScanner:
    return FaceScanner(build.faces, probe(path), build.video.frames_per_second, Helpers(0))


def prepare(paths: Sequence[Path], detector: AvffDetector, workers: int) -> list[Clip]:
    """Returns the windows of all files, prepared as `avff predict` does it.

    Raises:
        MediaError: a file cannot be read.
    """
    windows: list[Clip] = []
    for number, prepared in prepare_files(paths, detector, num_workers=workers):
        if prepared is not None and prepared.part is None:
            raise MediaError(f"{paths[number]}: {prepared.problem}")
        windows += [] if prepared is None else prepared.part.windows
    return windows


def time_model(detector: AvffDetector, windows: Sequence[Clip], count: int) -> Cost:
    """Measures the network on some windows, after one to warm up, and scales that to all of them."""
    detector.score(windows[:1])
    batch = list(itertools.islice(itertools.cycle(windows), count))
    _, cost = timed(lambda: detector.score(batch, batch_size=count))
    return Cost(*(value * len(windows) / count for value in cost))


def timed(work: Any) -> tuple[Any, Cost]:
    """Calls a function; returns what it returned and what it cost."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    result = work()
    return result, Cost(_cpu_seconds() - cpu, time.perf_counter() - wall)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def media_files(inputs: Sequence[Path]) -> list[Path]:
    """Returns the media files among files and in folders.

    Raises:
        MediaError: one does not exist, or there is no media file.
    """
    found = [path for given in inputs for path in (sorted(given.rglob("*")) if given.is_dir() else [given])]
    if missing := [str(path) for path in found if not path.exists()]:
        raise MediaError(f"{', '.join(missing)}: no such file or folder", reason="MISSING")
    media = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if not media:
        raise MediaError(
            f"{', '.join(map(str, inputs))}: no media file; suffixes are {', '.join(sorted(VIDEO_SUFFIXES))}",
            reason="MISSING",
        )
    return media


def random_detector(size: str, profile: str, device: str) -> AvffDetector:
    """Returns a detector with random weights of a size, for clips of a profile."""
    values = {
        "name": "bench",
        "stage": "finetune",
        "model": {"size": size},
        "data": {"train": [{"path": "none"}], "validation": [{"path": "none"}], "labels": "known"},
    }
    config = from_dict(Config, values, where="tools/bench.py predict")
    chosen = choose_device(device)
    return AvffDetector(
        name="avff",
        run=config.name,
        run_dir=Path(config.name),
        weights_path=Path(f"random {size} weights"),
        checkpoint_sha256="0" * 64,
        step=0,
        config=config,
        build=BuildConfig(profile=profile),
        trained_on=[],
        threshold=None,
        device=chosen,
        view=AVView(config.clip),
        model=build_classifier(config).to(chosen).eval(),
        preprocess=Preprocess(config.clip, config.data.augment),
    )
