"""Real updates of the real engine on fixed clips: what the tests of its speed and of its numbers share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from avff.batch import AVBatch
from avff.config import Config
from avff.engine import process
from avff.engine.update import Updater, build_updater
from avff.objectives import build_objective

CLIPS = 4


class Numbers(NamedTuple):
    """Of one update: its loss, and the norm of the model's gradient before clipping."""

    loss: float
    gradient_norm: float


def clips(config: Config, count: int) -> AVBatch:
    clip, rng = config.clip, torch.Generator().manual_seed(3)
    side, labels = clip.load_size, torch.arange(count) % 2
    video = torch.randint(0, 256, (count, clip.num_frames, side, side, 3), dtype=torch.uint8, generator=rng)
    seeds = torch.randint(0, 2**62, (count,), generator=rng)
    sound = 0.1 * torch.randn(count, clip.num_samples, generator=rng)
    keys = tuple(f"clip{i}" for i in range(count))
    return AVBatch(keys, (-1,) * count, torch.zeros(count).double(), seeds, video, sound, labels, labels, 1 - labels)


def micro_batches(config: Config) -> Sequence[AVBatch]:
    """The clips of one update of a single rank."""
    batch, size = clips(config, config.engine.global_batch_size), config.engine.micro_batch_size
    parts = range(0, config.engine.global_batch_size, size)
    return [AVBatch(*(value[start : start + size] for value in batch)) for start in parts]


def make_updater(config: Config, change: Callable[[torch.nn.Module], None] = lambda model: None) -> Updater:
    """Builds the engine's updater in this process; `change` is made to the network before DeepSpeed wraps it."""
    device = process.start(config)
    objective = build_objective(config)
    change(objective.model)
    return build_updater(config, objective, device)


def numbers(config: Config, num_updates: int = 2, change: Callable = lambda model: None) -> list[Numbers]:
    """Returns the numbers of the first updates."""
    updater, batches = make_updater(config, change), micro_batches(config)
    reports = [updater.update(step, batches) for step in range(num_updates)]
    return [Numbers(report.terms["loss"], report.gradient_norms["model"]) for report in reports]
