"""A talking head of any size and length, for benchmarks without media of their own."""

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avff.media.synthetic.heads import Take, render
from avff.media.synthetic.mouth import MouthCurve
from avff.media.synthetic.talking_heads import HeadRecipe

FRAMES_PER_SECOND = 25
LOOP_FRAMES = 50
"""Frames that are drawn; the file plays them to and fro."""


def generated_head(folder: Path, height: int, seconds: float) -> Path:
    """Returns an mp4 of a talking head, 16:9, with sound; drawn once per size and length."""
    path = folder / f"head_{height}p_{seconds:g}s.mp4"
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
