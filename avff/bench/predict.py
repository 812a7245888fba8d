"""Predict: seconds of video per second, from a media file to a verdict, split into its phases.

Phases are measured one after the other on one thread: decoding (each file twice: to look and to cut), faces (the small copies
and the detector), cut_encode (crops, h264, FLAC, metadata) and windows (decoding of what was encoded). `prepare` is all of that
as `avff predict` does it, in this process (workers 0) and on --workers cores; rounds alternate between them, and the table
gives medians. `model` is the network on all of torch's threads, measured on --windows windows and scaled to all of them, with
random weights of --size; another device changes this row alone.

Below the table: whether decoding and faces together keep up with real time on two cores, by the CPU seconds of `decode+faces`,
and on --workers cores all of `prepare`, by the clock, and the model.
"""

import argparse
import itertools
import os
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
import torch

from avff.batch import Clip
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
from avff.media.synthetic.heads import Take, render
from avff.media.synthetic.mouth import MouthCurve
from avff.media.synthetic.talking_heads import HeadRecipe
from avff.models.build import build_classifier
from avff.preprocess import Preprocess
from avff.strict_yaml import from_dict

T = TypeVar("T")
FRAMES_PER_SECOND = 25
AIM_CORES = 2
LOOP_FRAMES = 50
"""Frames that are drawn; the generated file plays them to and fro."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", type=Path, nargs="+", default=[], help="media files or folders (default: a generated talking head)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of the generated file (default 20)")
    parser.add_argument("--height", type=int, default=720, help="of its picture, 16:9 (default 720)")
    parser.add_argument(
        "--profile", choices=tuple(PROFILES), default="evidence", help="of the build (default evidence)"
    )
    parser.add_argument("--size", default="base", help="of the model: tiny, small, base or large (default base)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--rounds", type=int, default=1, help="default 1")
    parser.add_argument(
        "--windows", type=int, default=2, help="that the model scores per round, in one batch (default 2)"
    )
    parser.add_argument("--device", default="auto", help="of the model: auto, cpu or cuda (default auto)")


class Cost(NamedTuple):
    """CPU seconds of this process and those that ended meanwhile, and seconds on the clock."""

    cpu_seconds: float
    wall_seconds: float


def run(arguments: argparse.Namespace) -> str:
    """Measures every phase and returns the table."""
    paths = media_files(arguments.input) if arguments.input else [generated_head(arguments)]
    detector = random_detector(arguments.size, arguments.profile, arguments.device)
    rounds: list[dict[tuple[str, int], Cost]] = []
    for _ in range(arguments.rounds):
        rounds.append(time_round(paths, detector, arguments))
    video_seconds = sum(max(float(frame.stop_seconds) for frame in read_frames(path)) for path in paths)
    rows = [_row(phase, workers, [r[phase, workers] for r in rounds], video_seconds) for phase, workers in rounds[0]]
    about = {
        "files": [str(path) for path in paths],
        "video_seconds": video_seconds,
        "profile": arguments.profile,
        "size": arguments.size,
        "device": str(detector.device),
        "rounds": arguments.rounds,
        "torch_threads": torch.get_num_threads(),
    }
    return "\n".join([write_report(arguments.folder / "predict.json", rows, about), *verdicts(rows)])


def verdicts(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields how the phases compare with real time, as sentences."""
    speed = {row["phase"]: row for row in rows}  # of `prepare`, the one with workers
    on_two_cores = AIM_CORES * speed["decode+faces"]["video_seconds_per_cpu_second"]
    met = "faster" if on_two_cores > 1 else "SLOWER"
    yield f"decode and faces on {AIM_CORES} cores: {on_two_cores:.2f} times real time ({met}; the aim is faster, at 720p)"
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


def generated_head(arguments: argparse.Namespace) -> Path:
    """Returns a talking head, drawn once per size and length."""
    height, seconds = arguments.height, arguments.seconds
    path = arguments.folder / f"head_{height}p_{seconds:g}s.mp4"
    if path.is_file():
        return path
    recipe = HeadRecipe(seed=0, person="speaker", partner="speaker", index=0, category="RVRA", split="test")
    width = round(height * 16 / 9 / 2) * 2
    take = Take(
        seed=0,
        width=width,
        height=height,
        num_frames=LOOP_FRAMES,
        frames_per_second=FRAMES_PER_SECOND,
        pixels_per_unit=0.2 * height,
        centre=(0.5 * width, 0.47 * height),
        softness_pixels=0.8,
        noise_levels=1.5,
        exposure=1.0,
    )
    curve = MouthCurve(*(values_T[:LOOP_FRAMES] for values_T in recipe.true_curve()))
    frames_THWC = render(take, recipe.face(), curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    _write_loop(temporary, frames_THWC, recipe.waveform(), round(seconds * FRAMES_PER_SECOND))
    os.replace(temporary, path)
    return path


def _write_loop(path: Path, frames_THWC: np.ndarray, waveform_N: np.ndarray, num_frames: int) -> None:
    """Writes an mp4 of so many frames, to and fro through what was drawn, with the sound over and over."""
    there_and_back = itertools.cycle([*range(len(frames_THWC)), *reversed(range(len(frames_THWC)))])
    num_samples = round(num_frames / FRAMES_PER_SECOND * 16000)
    sound_N = np.resize(waveform_N, num_samples).astype(np.float32)
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        video.height, video.width, video.pix_fmt = *frames_THWC.shape[1:3], "yuv420p"
        video.options = {"crf": "21", "preset": "veryfast", "threads": "1"}
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for number, index in enumerate(itertools.islice(there_and_back, num_frames)):
            frame = av.VideoFrame.from_ndarray(frames_THWC[index], format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(sound_N[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 16000, 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))
