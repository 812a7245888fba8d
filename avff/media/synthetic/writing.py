"""From frames and sound to files: one encoder for every clip, parallel, resumable, written under a temporary name."""

import csv
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch

from avff.errors import ConfigError
from avff.media.synthetic.drawing import smooth_noise
from avff.media.synthetic.voice import SAMPLE_RATE_HZ
from avff.progress import progress_bar
from avff.seeding import generator

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 3
"""Raised whenever the same arguments give other clips, so that a folder never mixes two generators."""
METADATA_NAME = "metadata.csv"
_SETTINGS_NAME = "generator.json"
_COLUMNS = (
    "video_name",
    "target",
    "video_is_fake",
    "audio_is_fake",
    "category",
    "methods",
    "group_ids",
    "split",
    "dataset",
)


class Recipe(Protocol):
    """What one clip is made from; small, so that it travels to worker processes."""

    @property
    def video_name(self) -> str: ...

    def metadata_row(self) -> dict[str, str | int]:
        """Returns the clip's row of the metadata, column by column."""
        ...

    def make(self) -> "Clip":
        """Draws the clip."""
        ...


@dataclass(frozen=True)
class Clip:
    """Frames and sound ready for the encoder."""

    frames_THWC: np.ndarray
    """uint8 RGB."""
    waveform: np.ndarray
    """float32, SAMPLE_RATE_HZ."""
    frames_per_second: int
    codec_seed: int
    """Draws the encoder's settings."""


@dataclass(frozen=True)
class GenerationSummary:
    """What a generator left behind."""

    output: Path
    metadata: Path
    num_written: int
    num_kept: int
    """Clips that were there before and were left alone."""
    seconds: float

    def __str__(self) -> str:
        return f"{self.output}: {self.num_written} clips written, {self.num_kept} kept, {self.seconds:.1f} s"


def master(waveform: np.ndarray, seed: int) -> np.ndarray:
    """Adds a room to a clean sound and sets its loudness; both are drawn without looking at any label.

    Args:
        waveform: of RMS 1.

    Returns:
        float32 within [-1, 1].
    """
    rng = generator(seed, "master")
    spectrum = np.fft.rfft(rng.standard_normal(len(waveform)))
    frequency_hz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE_HZ)
    room = np.fft.irfft(spectrum * np.maximum(frequency_hz, 60.0) ** -rng.uniform(0.1, 0.9), len(waveform))
    room *= 1 + 0.2 * smooth_noise(rng, (2, len(waveform)), SAMPLE_RATE_HZ * 0.5)[0]
    room *= 10 ** (-rng.uniform(20, 34) / 20) / np.sqrt(np.mean(room**2))
    mixed = waveform + room
    mixed *= 10 ** (-rng.uniform(19, 28) / 20) / np.sqrt(np.mean(mixed**2))
    return np.clip(mixed, -0.99, 0.99).astype(np.float32)


def encode_clip(clip: Clip, path: Path) -> None:
    """Writes h264 and aac into an mp4 by way of a temporary name; settings vary with the clip's codec seed."""
    rng = generator(clip.codec_seed, "codec")
    crf, gop_frames = int(rng.integers(19, 25)), int(rng.choice((25, 50, 250)))
    audio_rate_hz, audio_bit_rate = int(rng.choice((16000, 32000, 44100, 48000))), int(rng.choice((64000, 96000)))
    height, width = clip.frames_THWC.shape[1:3]
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial")
    try:
        with av.open(temporary, "w", format="mp4") as container:
            video = container.add_stream("libx264", rate=clip.frames_per_second)
            video.width, video.height, video.pix_fmt, video.gop_size = width, height, "yuv420p", gop_frames
            # Slower presets of x264 gave other bytes in about one run of eight, on one thread and equal input.
            video.options = {"crf": str(crf), "preset": "superfast", "threads": "1"}
            audio = container.add_stream("aac", rate=audio_rate_hz, layout="mono")
            audio.bit_rate, audio.options = audio_bit_rate, {"aac_coder": "fast"}
            for index, frame_HWC in enumerate(clip.frames_THWC):
                frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, clip.frames_per_second)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            for samples in _audio_frames(clip.waveform, audio_rate_hz, audio.frame_size):
                container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _audio_frames(waveform: np.ndarray, rate_hz: int, frame_size: int) -> Iterable[av.AudioFrame]:
    """Yields the sound at the encoder's rate and frame size."""
    samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="fltp", layout="mono")
    samples.sample_rate, samples.pts, samples.time_base = SAMPLE_RATE_HZ, 0, Fraction(1, SAMPLE_RATE_HZ)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate_hz, frame_size=frame_size)
    yield from resampler.resample(samples)
    yield from resampler.resample(None)


def generate(
    output: Path, recipes: Sequence[Recipe], settings: dict[str, Any], *, num_workers: int, progress: bool
) -> GenerationSummary:
    """Draws every clip that is not there yet and writes the metadata.

    Args:
        output: a new folder, or one that an earlier call with the same settings began.
        settings: all that decides what the clips look like; kept beside them.
        num_workers: processes; 0 and 1 draw in this one.

    Raises:
        ConfigError: the folder holds clips of other settings.
    """
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, settings)
    missing = [recipe for recipe in recipes if not (output / recipe.video_name).exists()]
    num_kept = len(recipes) - len(missing)
    if num_kept:
        logger.info("%s: %d of %d clips are there and are kept", output, num_kept, len(recipes))
    for folder in {(output / recipe.video_name).parent for recipe in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    _run_all(output, missing, num_workers, progress)
    _write_metadata(output / METADATA_NAME, recipes)
    return GenerationSummary(output, output / METADATA_NAME, len(missing), num_kept, time.monotonic() - started)


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Writes the settings into a new folder, or checks that an old one has the same."""
    settings = json.loads(json.dumps({"generator_version": GENERATOR_VERSION, **settings}))
    path = output / _SETTINGS_NAME
    if not path.exists():
        _replace(path, lambda temporary: temporary.write_text(json.dumps(settings, indent=1) + "\n"))
        return
    there = json.loads(path.read_text())
    different = [
        f"{name} is {there.get(name)!r}, now {settings.get(name)!r}"
        for name in sorted(there.keys() | settings.keys())
        if there.get(name) != settings.get(name)
    ]
    if different:
        raise ConfigError(
            f"{output} holds generated clips of other settings: {'; '.join(different)}; "
            "choose another folder, or delete this one"
        )


def _run_all(output: Path, recipes: Sequence[Recipe], num_workers: int, progress: bool) -> None:
    with progress_bar(total=len(recipes), unit="clip", description=f"draw {output.name}", shown=progress) as bar:
        if num_workers <= 1:
            for recipe in recipes:
                _write_one(output, recipe)
                bar.update()
            return
        # spawn: a forked child of a process that has used torch's threads can hang in them.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(num_workers, max(1, len(recipes))), context, torch.set_num_threads, (1,)) as pool:
            for future in as_completed([pool.submit(_write_one, output, recipe) for recipe in recipes]):
                future.result()
                bar.update()


def _write_one(output: Path, recipe: Recipe) -> None:
    encode_clip(recipe.make(), output / recipe.video_name)


def _write_metadata(path: Path, recipes: Sequence[Recipe]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(recipe.metadata_row() for recipe in recipes)

    _replace(path, write)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    os.replace(temporary, path)
