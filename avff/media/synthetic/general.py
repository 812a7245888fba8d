"""General video with matching sound, for stage 1: things that move and sound at once.

A thing is planned at CONTROL_HZ: its place, size and glow, and the sound that this motion makes. What is seen and
what is heard come from the same plan, at lag zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avff.errors import ConfigError
from avff.media.synthetic.drawing import camera_noise, draw_wall, ellipse, paint, smooth_curve, step
from avff.media.synthetic.voice import CONTROL_HZ, SAMPLE_RATE_HZ
from avff.media.synthetic.writing import Clip, GenerationSummary, generate, master
from avff.seeding import derive_seed, generator

_FRAMES_PER_SECOND = 25
_NUM_FRAMES = (96, 108)
_SIZES = ((256, 192), (224, 224), (288, 208))


@dataclass(frozen=True)
class Thing:
    """One thing that moves and sounds; arrays have one entry per 1 / CONTROL_HZ seconds."""

    x: np.ndarray
    """Middle, as a share of the frame's width."""
    y: np.ndarray
    """Middle, as a share of the frame's height."""
    radius: np.ndarray
    """Share of the frame's height."""
    flatness: np.ndarray
    """1 is round, below is flatter and wider."""
    glow: np.ndarray
    """0 keeps the colour, 1 turns it white."""
    waveform: np.ndarray
    """What it sounds like, at SAMPLE_RATE_HZ."""


def _bouncing(rng: np.random.Generator, count: int) -> Thing:
    """A ball that is thrown again and again and rings where it hits the floor, the faster the louder."""
    radius, floor, gravity = rng.uniform(0.09, 0.16), rng.uniform(0.75, 0.92), rng.uniform(1.5, 4.0)
    keep, time = rng.uniform(0.75, 0.92), rng.uniform(-0.5, 0.0)
    seconds = _seconds(count)
    height, squash, speed = np.zeros((2, count)), np.ones(count), np.sqrt(2 * gravity * rng.uniform(0.35, 0.55))
    hits = []
    while time < count / CONTROL_HZ:
        speed = speed * keep if speed > 0.5 else np.sqrt(2 * gravity * rng.uniform(0.35, 0.55))
        flight = 2 * speed / gravity
        elapsed = seconds - time
        inside = (elapsed >= 0) & (elapsed < flight)
        height[0][inside] = (speed * elapsed - 0.5 * gravity * elapsed**2)[inside]
        squash = np.minimum(squash, 1 - 0.35 * np.exp(-np.square((elapsed - flight) / 0.03)))
        time += flight
        hits.append((time, speed))
    x = 0.5 + 0.25 * smooth_curve(rng, seconds, 0.05, 0.3)
    flash = _envelope([(moment, 1.0) for moment, _ in hits], count, 0.06)
    return Thing(x, floor - radius - height[0], np.full(count, radius), squash, 0.4 * flash, _ringing(rng, hits, count))


def _pulsing(rng: np.random.Generator, count: int) -> Thing:
    """A disc that swells with the loudness of its tone."""
    seconds, moment, swell = _seconds(count), rng.uniform(-0.3, 0.3), np.zeros(count)
    while moment < count / CONTROL_HZ:
        length = rng.uniform(0.2, 0.7)
        swell += rng.uniform(0.5, 1) * np.sin(np.pi * np.clip((seconds - moment) / length, 0, 1)) ** 1.5
        moment += length + rng.exponential(0.15)
    place = rng.uniform(0.3, 0.7, 2)
    radius = rng.uniform(0.08, 0.12) + 0.16 * swell
    sound = _tone(rng, np.full(count, rng.uniform(150, 900)), swell)
    return Thing(np.full(count, place[0]), np.full(count, place[1]), radius, np.ones(count), 0.5 * swell, sound)


def _drumming(rng: np.random.Generator, count: int) -> Thing:
    """A flat drum that jumps, flashes and bangs at irregular strokes."""
    moment, hits = rng.uniform(0, 0.4), []
    while moment < count / CONTROL_HZ:
        hits.append((moment, rng.uniform(0.4, 1.0)))
        moment += rng.uniform(0.15, 0.7)
    stroke, place = _envelope(hits, count, 0.09), rng.uniform(0.3, 0.7, 2)
    noise = rng.standard_normal(_num_samples(count)) * _at_samples(_envelope(hits, count, 0.035))
    sound = noise + 2 * _ringing(rng, hits, count, low_hz=70, high_hz=200)
    radius = rng.uniform(0.16, 0.24) * (1 + 0.35 * stroke)
    flat = np.full(count, rng.uniform(0.35, 0.6))
    return Thing(np.full(count, place[0]), place[1] + 0.06 * stroke, radius, flat, stroke, sound)


def _sweeping(rng: np.random.Generator, count: int) -> Thing:
    """A spot that rises and falls with its pitch and shines with its loudness."""
    seconds = _seconds(count)
    height = np.clip(0.5 + 0.35 * smooth_curve(rng, seconds, 0.3, 1.2), 0.05, 0.95)
    loudness = step(smooth_curve(rng, seconds, 0.5, 2.0) + 0.4, 0.8)
    pitch_hz = rng.uniform(120, 250) * 2 ** (rng.uniform(2.0, 3.5) * height)
    x = 0.5 + 0.3 * smooth_curve(rng, seconds, 0.05, 0.4)
    radius = rng.uniform(0.05, 0.08) * (1 + 0.8 * loudness)
    return Thing(x, 1 - height, radius, np.ones(count), 0.8 * loudness, _tone(rng, pitch_hz, loudness))


_THINGS: tuple[Callable[[np.random.Generator, int], Thing], ...] = (_bouncing, _pulsing, _drumming, _sweeping)


def _seconds(count: int) -> np.ndarray:
    return np.arange(count) / CONTROL_HZ


def _num_samples(count: int) -> int:
    return count * SAMPLE_RATE_HZ // CONTROL_HZ


def _at_samples(values: np.ndarray) -> np.ndarray:
    """Returns a control curve at every sample of the sound."""
    samples = np.arange(_num_samples(len(values))) * (CONTROL_HZ / SAMPLE_RATE_HZ)
    return np.interp(samples, np.arange(len(values)), values)


def _envelope(hits: list[tuple[float, float]], count: int, decay_seconds: float) -> np.ndarray:
    """Returns strokes that start at once and die away."""
    total = np.zeros(count)
    for moment, strength in hits:
        elapsed = _seconds(count) - moment
        total += strength * np.exp(-np.maximum(elapsed, 0) / decay_seconds) * (elapsed >= 0)
    return total


def _ringing(
    rng: np.random.Generator,
    hits: list[tuple[float, float]],
    count: int,
    low_hz: float = 200.0,
    high_hz: float = 1200.0,
) -> np.ndarray:
    """Returns struck modes of one body: each hit excites three dying tones."""
    modes_hz = rng.uniform(low_hz, high_hz) * np.array([1.0, rng.uniform(1.5, 2.4), rng.uniform(2.6, 4.2)])
    elapsed = np.arange(round(0.35 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    decay = np.exp(-elapsed / rng.uniform(0.04, 0.09))
    stroke = sum(decay * np.sin(2 * np.pi * mode_hz * elapsed) / (1 + k) for k, mode_hz in enumerate(modes_hz))
    impulses = np.zeros(_num_samples(count))
    for moment, strength in hits:
        index = round(moment * SAMPLE_RATE_HZ)
        if 0 <= index < len(impulses):
            impulses[index] += strength
    return np.convolve(impulses, stroke)[: len(impulses)]


def _tone(rng: np.random.Generator, pitch_hz: np.ndarray, loudness: np.ndarray) -> np.ndarray:
    """Returns a tone with overtones along a pitch and a loudness."""
    phase = 2 * np.pi * np.cumsum(_at_samples(pitch_hz)) / SAMPLE_RATE_HZ
    overtones = rng.uniform(0, 0.6, 3)
    wave = np.sin(phase) + sum(level * np.sin((k + 2) * phase) for k, level in enumerate(overtones))
    return wave * _at_samples(loudness)


@dataclass(frozen=True)
class SceneRecipe:
    """One general video; `make` draws it."""

    seed: int
    index: int
    split: str

    @property
    def video_name(self) -> str:
        return f"videos/scene_{self.index:05d}.mp4"

    @property
    def clip_seed(self) -> int:
        return derive_seed(self.seed, "scene", self.index)

    def metadata_row(self) -> dict[str, str | int]:
        return {
            "video_name": self.video_name,
            "target": 0,
            "video_is_fake": 0,
            "audio_is_fake": 0,
            "category": "RVRA",
            "methods": "",
            "group_ids": f"scene_{self.index:05d}",
            "split": self.split,
            "dataset": "synthetic_scenes",
        }

    def make(self) -> Clip:
        num_frames = int(generator(self.clip_seed, "length").integers(*_NUM_FRAMES))
        things = self.things(num_frames)
        frames_THWC = _render(self.clip_seed, things, num_frames)
        sound = sum(thing.waveform / np.sqrt(np.mean(thing.waveform**2) + 1e-9) for thing in things)
        sound = sound / np.sqrt(np.mean(np.square(sound)))
        return Clip(frames_THWC, master(sound, self.clip_seed), _FRAMES_PER_SECOND, self.clip_seed)

    def things(self, num_frames: int) -> list[Thing]:
        """Plans one or two different things."""
        rng = generator(self.clip_seed, "things")
        kinds = rng.permutation(len(_THINGS))[: rng.integers(1, 3)]
        count = num_frames * CONTROL_HZ // _FRAMES_PER_SECOND
        return [_THINGS[kind](rng, count) for kind in kinds]


def _render(seed: int, things: list[Thing], num_frames: int) -> np.ndarray:
    """Draws the things before a wall, (T, H, W, 3) uint8."""
    rng = generator(seed, "picture")
    width, height = _SIZES[rng.integers(len(_SIZES))]
    wall_HWC = draw_wall(rng, (height, width))
    colours = rng.uniform(0, 1, (len(things), 3))
    y_HW, x_HW = np.mgrid[:height, :width].astype(np.float32)
    frames_THWC = np.empty((num_frames, height, width, 3), np.uint8)
    noises = camera_noise(rng, (height, width), rng.uniform(1.0, 3.5), num_frames)
    for index, noise_HWC in enumerate(noises):
        picture_HWC = wall_HWC.copy()
        at = index * CONTROL_HZ // _FRAMES_PER_SECOND
        for thing, colour in zip(things, colours, strict=True):
            radius = float(thing.radius[at]) * height
            radii = (radius / np.sqrt(thing.flatness[at]), radius * np.sqrt(thing.flatness[at]))
            centre = (float(thing.x[at]) * width, float(thing.y[at]) * height)
            glow = min(1.0, float(thing.glow[at]))
            paint(picture_HWC, ellipse(x_HW, y_HW, centre, radii, 2.0), colour + glow * (1 - colour))
        frames_THWC[index] = np.clip(picture_HWC * 255 + noise_HWC, 0, 255)
    return frames_THWC


def generate_general_videos(
    output: Path,
    *,
    num_clips: int,
    validation_share: float = 0.1,
    seed: int = 0,
    num_workers: int = 2,
    progress: bool = True,
) -> GenerationSummary:
    """Draws general videos into `output/videos` and describes them in `output/metadata.csv`, all of them real.

    Args:
        validation_share: share of the clips that gets split `val`; the others get `train`.
        num_workers: processes; 0 and 1 draw in this one. No effect on the clips.

    Raises:
        ConfigError: the share is not in [0, 1), or the folder holds clips of other arguments.
    """
    if not 0 <= validation_share < 1:
        raise ConfigError(f"validation_share is {validation_share}; it has to be in [0, 1)")
    num_train = num_clips - round(num_clips * validation_share)
    recipes = [SceneRecipe(seed, index, "train" if index < num_train else "val") for index in range(num_clips)]
    settings = {"kind": "general", "seed": seed, "num_clips": num_clips, "validation_share": validation_share}
    return generate(Path(output), recipes, settings, num_workers=num_workers, progress=progress)
