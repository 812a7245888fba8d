"""Trains two stages per ZeRO stage in one launch and writes down what the live networks compute at the end.

Arguments: folder for runs, shard directory.

ZeRO-3 replaces torch's linear function by a matrix product and an addition, which round otherwise than both in one. So
the live network runs twice: with that function (`in_training`), and with torch's own (`live`).
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import adapt_weights
from little_stages import make_stages

from avff import distributed
from avff.config import Config, save_config
from avff.engine import process
from avff.engine.train import run_stage
from avff.engine.update import Updater
from avff.exporting.graph import example_inputs
from avff.models.weights import save_tensors

ZERO_STAGES = (0, 1, 2, 3)
NUM_CLIPS = 3
LIVE, IN_TRAINING = "live.safetensors", "in_training.safetensors"
PLAIN_LINEAR = F.linear


def cell_stages(folder: Path, shards: Path, zero_stage: int) -> list[Config]:
    """Returns a pretraining and a finetuning that starts from its adapted weights."""
    pretrain, _, finetune = make_stages(shards, folder / f"zero{zero_stage}")
    return [
        dataclasses.replace(stage, engine=dataclasses.replace(stage.engine, zero_stage=zero_stage))
        for stage in (pretrain, finetune)
    ]


@torch.no_grad()
def outputs_of(network, config: Config) -> dict[str, Tensor]:
    """Returns what a network, or the engine around one, makes of the same inputs."""
    torch.manual_seed(0)
    found = network(*example_inputs(config, NUM_CLIPS), torch.arange(NUM_CLIPS))
    return {name: value for name, value in found._asdict().items() if isinstance(value, Tensor)}


def train(config: Config, device: torch.device, updaters: Sequence[Updater]) -> None:
    """Runs a stage; all ranks then run the live network, and rank 0 writes what it said."""
    assert run_stage(config, device) == 0
    model = updaters[-1].trainables[0]
    model.module.eval()
    replaced = F.linear
    for name, linear in ((IN_TRAINING, replaced), (LIVE, PLAIN_LINEAR)):
        F.linear = linear
        outputs = outputs_of(model, config)
        if distributed.is_main():
            save_tensors(config.run_dir / name, outputs)
    F.linear = replaced


def main(folder: str, shards: str) -> None:
    updaters: list[Updater] = []
    make = Updater.__init__

    def remember(updater: Updater, *arguments, **keywords) -> None:
        make(updater, *arguments, **keywords)
        updaters.append(updater)

    Updater.__init__ = remember  # type: ignore[method-assign]
    for zero_stage in ZERO_STAGES:  # 3 goes last: it replaces torch's linear function for the rest of the process
        pretrain, finetune = cell_stages(Path(folder), Path(shards), zero_stage)
        device = process.start(pretrain)
        train(pretrain, device, updaters)
        if distributed.is_main():
            target = pretrain.run_dir / "next.yaml"
            save_config(finetune, target)
            source = ["--from", f"{pretrain.run_dir}:last", "--to", str(target)]
            assert adapt_weights.main([*source, "--output", finetune.engine.init_weights]) == 0
        distributed.barrier()
        train(finetune, device, updaters)
    process.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
