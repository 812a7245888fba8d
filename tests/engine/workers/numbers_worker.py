"""Training runs that are watched and disturbed, several in one launch to pay for starting processes once.

Argument: a JSON file with a list of jobs:

    config          plain values
    stop_in_step    in this update the last rank sends itself USR2, as a scheduler would, so that the run saves and stops
    faults          {step: fault}: what goes wrong in this update on the last rank, see `FAULTS`
    watch           folder for `keys.jsonl`, what every rank read in each update, and `start.safetensors`, the
                    state of both engines before the first update

A run that stops for an error ends the process, so it has to be the last; its exit.json says why.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from avff import distributed
from avff.batch import AVBatch
from avff.config import Config
from avff.engine import process
from avff.engine.fragments import KEYS
from avff.engine.train import run_stage
from avff.engine.update import Updater
from avff.objectives.losses import StepLosses
from avff.strict_yaml import from_dict


class _NanGradient(torch.autograd.Function):
    """The identity, whose derivative is NaN."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


def _nan_sound(batch: AVBatch) -> AVBatch:
    """Puts one NaN into the last clip."""
    waveform_BN = batch.waveform_BN.clone()
    waveform_BN[-1, 0] = torch.nan
    return batch._replace(waveform_BN=waveform_BN)


def _nan_gradient(losses: StepLosses) -> StepLosses:
    return losses._replace(total=_NanGradient.apply(losses.total))


FAULTS = {
    "input": "the last clip's sound holds a NaN",
    "model": "the model's loss is finite, its gradient is NaN",
    "critics": "the critics' loss is finite, its gradient is NaN",
}


class Watch:
    """Stands in for `Updater.update`."""

    def __init__(self, job: dict[str, Any]):
        self.stop_in_step = job.get("stop_in_step")
        self.faults = {int(step): fault for step, fault in job.get("faults", {}).items()}
        self.folder = Path(job["watch"]) if "watch" in job else None
        self.has_started = False
        self.update = Updater.update

    def __call__(self, updater: Updater, step: int, micro_batches: Sequence[AVBatch], *arguments: Any) -> Any:
        if self.folder:
            self._look(updater, step, micro_batches)
        is_last = distributed.rank() == distributed.world_size() - 1
        if is_last and step == self.stop_in_step:
            os.kill(os.getpid(), signal.SIGUSR2)
        fault = self.faults.get(step) if is_last else None
        if fault == "input":
            micro_batches = [*micro_batches[:-1], _nan_sound(micro_batches[-1])]
        if fault in ("model", "critics"):
            self._spoil_gradient(updater.objective, f"{fault.removesuffix('s')}_losses")
        try:
            return self.update(updater, step, micro_batches, *arguments)
        finally:
            vars(updater.objective).pop("model_losses", None)
            vars(updater.objective).pop("critic_losses", None)

    def _spoil_gradient(self, objective: Any, name: str) -> None:
        """For one update, in the instance: the class's own method comes back when it is removed."""
        losses = getattr(objective, name)
        setattr(objective, name, lambda *arguments: _nan_gradient(losses(*arguments)))

    def _look(self, updater: Updater, step: int, micro_batches: Sequence[AVBatch]) -> None:
        keys = distributed.gather_objects([list(batch.keys) for batch in micro_batches])
        state = {} if self.has_started else state_of(updater)
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "keys.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "keys": keys}) + "\n")
            if state:
                save_file(state, self.folder / "start.safetensors")
        self.has_started = True


def state_of(updater: Updater) -> dict[str, Tensor]:
    """Everything that ranks and ZeRO stages keep, by name, whole; a collective."""
    state = {
        f"{trainable.name}/{key}/{name}": tensor.clone()
        for trainable in updater.trainables
        for key in KEYS
        for name, tensor in trainable.gather(key)
    }
    updates = {f"{t.name}/num_updates": torch.tensor([t.num_updates]) for t in updater.trainables}
    return state | updates


def main(jobs_path: str) -> None:
    original = Updater.update
    for number, job in enumerate(json.loads(Path(jobs_path).read_text())):
        config = from_dict(Config, job["config"], where=f"job {number}")
        device = process.start(config)
        watch = Watch(job)
        Updater.update = lambda *arguments, watch=watch: watch(*arguments)
        run_stage(config, device)
        Updater.update = original
    process.end(0)


if __name__ == "__main__":
    main(sys.argv[1])
