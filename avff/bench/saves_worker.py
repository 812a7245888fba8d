"""One rank of `tools/bench.py checkpoint`: trains, saves with and without overlap, and writes the medians.

Arguments: folder for checkpoints, output file, number of parameters, saves of each kind.
"""

import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from avff import distributed
from avff.config import Config, DataConfig, EngineConfig
from avff.engine import process
from avff.engine.saver import SaveOutcome, Saver
from avff.engine.trainable import Trainable
from avff.errors import TrainingError

WIDTH = 1000


def make_trainable(num_parameters: int, device: torch.device, config: Config) -> Trainable:
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(max(1, num_parameters // WIDTH**2))]
    return Trainable("model", nn.Sequential(*layers).to(device), config, zero_stage=1, learning_rate=1e-6)


class Bench:
    """Steps and saves of one rank."""

    def __init__(self, folder: Path, trainable: Trainable, device: torch.device):
        self.folder = folder
        self.trainable = trainable
        self.device = device
        self.step = 0

    def train(self, saver: Saver | None = None) -> tuple[float, SaveOutcome | None]:
        """Makes one step as the loop does; returns its seconds, and how a pending save ended in it."""
        start = time.monotonic()
        self.trainable.backward(self.trainable(torch.ones(1, WIDTH, device=self.device)).square().mean())
        votes = torch.tensor(saver.votes() if saver else (0.0,), device=self.device)
        totals = distributed.all_reduce_sum(votes).tolist()
        self.trainable.step(learning_rate_factor=1.0)
        outcome = saver.advance(totals) if saver else None
        self.step += 1
        return time.monotonic() - start, outcome

    def save(self, saver: Saver) -> tuple[float, float, list[float]]:
        """Saves once; returns seconds blocked, seconds until the commit, and those of the steps made meanwhile."""
        start, seconds = time.monotonic(), []
        ended = saver.begin(self.step, {"step": self.step}, {}, lambda: None)
        while not ended:
            elapsed, outcome = self.train(saver)
            seconds.append(elapsed)
            ended = [outcome] if outcome else []
        if not ended[0].committed:
            raise TrainingError(f"{self.folder}: {'; '.join(ended[0].problems)}")
        return ended[0].blocked_seconds, time.monotonic() - start, seconds

    def measure(self, *, overlap: bool, num_saves: int) -> dict[str, float | None]:
        distributed.barrier()  # the others may still look at the files of the measurement before
        if distributed.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)
        distributed.barrier()
        saver = Saver(self.folder, [self.trainable], keep=1, keep_every=0, overlap=overlap)
        undisturbed = [self.train()[0] for _ in range(10)]
        self.save(saver)  # makes the buffers
        saves = []
        for _ in range(num_saves):
            self.train()
            saves.append(self.save(saver))
        blocked = statistics.median(seconds for seconds, _, _ in saves)
        total = statistics.median(seconds for _, seconds, _ in saves)
        disturbed = [seconds for _, _, steps in saves for seconds in steps]
        step_seconds = statistics.median(undisturbed)
        written = [path.stat().st_size for path in self.folder.rglob("*.safetensors")]
        return {
            "ranks": distributed.world_size(),
            "overlap": int(overlap),
            "megabytes": sum(written) / 1e6,
            "blocked_seconds": blocked,
            "total_seconds": total,
            "blocked_ratio": blocked / total,
            "step_seconds": step_seconds,
            "slower_steps": statistics.median(disturbed) / step_seconds if disturbed else None,
        }


def main(folder: str, output: str, num_parameters: str, num_saves: str) -> None:
    ranks = distributed.world_size()
    config = Config(
        name="bench",
        stage="finetune",
        data=DataConfig(labels="known"),
        engine=EngineConfig(global_batch_size=ranks, micro_batch_size=1, precision="fp32"),
    )
    device = process.start(config)
    bench = Bench(Path(folder), make_trainable(int(num_parameters), device, config), device)
    rows = [bench.measure(overlap=overlap, num_saves=int(num_saves)) for overlap in (True, False)]
    distributed.barrier()
    if distributed.is_main():
        Path(output).write_text(json.dumps(rows))
        shutil.rmtree(folder)
    process.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
