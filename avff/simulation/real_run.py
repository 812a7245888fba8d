"""One rank of a real, small training that the formulas are checked against: what it sends, holds, and takes.

Started by avff.simulation.check under torchrun. Arguments: YAML config with a micro batch per rank, output file, timed
updates.
"""

import gc
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from avff import distributed
from avff.batch import UNKNOWN, AVBatch
from avff.config import Config, load_config
from avff.engine import process
from avff.engine.update import build_updater
from avff.objectives import build_objective
from avff.simulation.stage import scaled_config

KINDS = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
}
"""Torch's operators, which every library ends in, and what they are here."""
REDUCED_BYTES = (1 << 12, 1 << 16, 1 << 20, 1 << 23)
"""Sizes of the all-reduces that are timed by themselves."""


class CollectiveCounter(TorchDispatchMode):
    """Counts the collectives that run inside it.

    Attributes:
        num_bytes: by kind, as `avff.simulation.traffic.Collective.num_bytes` counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._overloadpacket.__name__
            kind = KINDS.get(name, name)
            tensors = list(_tensors(args))
            total = sum(x.numel() * x.element_size() for x in tensors)
            # Gathered and scattered tensors come together with one rank's share of them.
            ranks = distributed.world_size()
            self.num_bytes[kind] += total if kind == "all_reduce" else total * ranks // (ranks + 1)
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def held_bytes() -> int:
    """Returns the bytes of all tensors that this process holds, shared ones once, gradients included."""
    gc.collect()
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        if issubclass(type(found), Tensor) and found.device.type != "meta":
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def make_batch(config: Config) -> AVBatch:
    """Returns a micro batch of noise."""
    clip, size = config.clip, config.engine.micro_batch_size
    unknown_B = torch.full((size,), UNKNOWN)
    return AVBatch(
        keys=("made",) * size,
        tracks=(-1,) * size,
        start_seconds_B=torch.zeros(size, dtype=torch.float64),
        seed_B=torch.arange(size) + size * distributed.rank(),
        video_BTHWC=torch.randint(
            0, 255, (size, clip.num_frames, clip.load_size, clip.load_size, 3), dtype=torch.uint8
        ),
        waveform_BN=torch.rand(size, clip.num_samples) - 0.5,
        is_fake_B=unknown_B,
        video_is_fake_B=unknown_B,
        audio_is_fake_B=unknown_B,
    )


class Training:
    """Model, critics and their engines under one ZeRO stage; `update` is the loop's."""

    def __init__(self, config: Config, device: torch.device):
        self.micro_batches = [make_batch(config) for _ in range(config.accumulation_steps(distributed.world_size()))]
        before = held_bytes()
        self.held: dict[str, int] = {}
        self._weighs = False

        def mark(phase: str, step: int) -> None:
            if self._weighs:
                self.held[phase] = held_bytes() - before

        self._updater = build_updater(config, build_objective(config), device, mark=mark)
        self._before = before
        self._step = 0

    def update(self) -> tuple[float, float]:
        """Returns the seconds of one update, by the clock and of this process's cores."""
        _wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        self._updater.update(self._step, self.micro_batches)
        _wait()
        self._step += 1
        return time.perf_counter() - start, time.process_time() - cpu_start

    def weigh(self) -> tuple[int, int]:
        """Returns bytes held between updates, and when an update is about to step."""
        self._weighs = True
        self.update()
        self._weighs = False
        return held_bytes() - self._before, self.held["applying"]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(config: Config, device: torch.device, num_updates: int) -> dict[str, Any]:
    """Returns bytes and seconds of the config's ZeRO stage on this many ranks."""
    training = Training(config, device)
    training.update()
    training.update()
    state, stepping = training.weigh()
    with CollectiveCounter() as counter:
        training.update()
    # The fastest of each: what else the machine does can only add.
    seconds, cpu_seconds = map(min, zip(*(training.update() for _ in range(num_updates)), strict=True))
    return {
        "ranks": distributed.world_size(),
        "zero_stage": config.engine.zero_stage,
        "state_bytes": state,
        "stepping_bytes": stepping,
        "num_bytes": dict(counter.num_bytes),
        "step_seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def time_all_reduces(device: torch.device) -> list[tuple[int, float]]:
    """Returns (bytes, seconds) of all-reduces by themselves, the fastest of several; nothing on one rank."""
    found = []
    for size in REDUCED_BYTES if distributed.world_size() > 1 else ():
        x, seconds = torch.ones(size // 4, device=device), []
        for _ in range(12):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(x)
            _wait()
            seconds.append(time.perf_counter() - start)
        found.append((size, min(seconds)))
    return found


def main(config_path: str, output: str, num_updates: str) -> None:
    config = load_config(config_path)
    device = process.start(config)
    scaled = scaled_config(config, distributed.world_size(), "weak")
    rows = []
    for stage in (0, 1, 2, 3):
        engine = replace(scaled.engine, zero_stage=stage)
        rows.append(measure(replace(scaled, engine=engine), device, int(num_updates)))
    reduced = time_all_reduces(device)
    if distributed.is_main():
        Path(output).write_text(json.dumps({"rows": rows, "all_reduces": reduced}))
    process.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
