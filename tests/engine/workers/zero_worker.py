"""A toy with odd sizes and two parameter groups per engine: every ZeRO stage against plain torch.

Arguments: output file, folder for checkpoints, folder of checkpoints written by another number of ranks ("" for none).
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from avff import distributed, run_folder
from avff.batch import AVBatch
from avff.config import Config, DataConfig, EngineConfig, OptimConfig
from avff.engine import checkpoint, process
from avff.engine.fragments import KEYS
from avff.engine.optimizer import AdamWithEma, parameter_groups, set_learning_rates
from avff.engine.saver import Saver
from avff.engine.schedule import learning_rate_factor
from avff.engine.trainable import Trainable
from avff.engine.update import Updater, UpdateReport
from avff.objectives import StepLosses

GLOBAL_BATCH, MICRO_BATCH, STEPS, SKIPPED = 8, 2, 5, 2


def config_of(precision: str) -> Config:
    return Config(
        name="toy",
        stage="finetune",
        data=DataConfig(labels="known"),
        engine=EngineConfig(
            global_batch_size=GLOBAL_BATCH, micro_batch_size=MICRO_BATCH, precision=precision, num_threads=1
        ),
        optim=OptimConfig(
            learning_rate=1e-2,
            new_layer_factor=3.0,
            critic_learning_rate=2e-2,
            num_steps=20,
            warmup_steps=3,
            clip_gradient_norm=0.5,
            ema_decay=0.9,
        ),
    )


class ToyObjective:
    """Squared error of a small network; the critic scores its output."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.GELU(), nn.Linear(13, 5), nn.Linear(5, 3))
        self.critics = nn.Sequential(nn.Linear(3, 11), nn.GELU(), nn.Linear(11, 1))

    def model_losses(self, model, critics, batch, cached=None):
        output = model(batch.waveform_BN).float()
        total = (output - batch.video_BTHWC).square().mean()
        return StepLosses(total, {"loss": total.detach()}, output.detach())

    def critic_losses(self, critics, output):
        total = (critics(output).float() - 1).square().mean()
        return StepLosses(total, {"critic_loss": total.detach()})


def clips(step: int, poisoned: bool = False) -> AVBatch:
    """The global batch of a step; a poisoned one has a NaN target in its last clip, which the last rank reads.

    The NaN reaches the model's gradients only: the critics' are finite, and have to be skipped all the same.
    """
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(GLOBAL_BATCH, 7, generator=generator), torch.randn(GLOBAL_BATCH, 3, generator=generator)
    if poisoned:
        y[-1] = torch.nan
    labels = torch.zeros(GLOBAL_BATCH, dtype=torch.int64)
    keys = tuple(f"clip{i}" for i in range(GLOBAL_BATCH))
    return AVBatch(keys, (-1,) * GLOBAL_BATCH, labels.double(), labels, y, x, labels, labels, labels)


def cut(batch: AVBatch, start: int, count: int) -> AVBatch:
    return AVBatch(*(value[start : start + count] for value in batch))


def share(batch: AVBatch) -> list[AVBatch]:
    per_rank = GLOBAL_BATCH // distributed.world_size()
    first = per_rank * distributed.rank()
    return [cut(batch, first + i, MICRO_BATCH) for i in range(0, per_rank, MICRO_BATCH)]


def make_updater(zero_stage: int, precision: str, device: torch.device, seed: int = 1) -> Updater:
    config, objective = config_of(precision), ToyObjective(seed)
    rate, critic_rate = config.optim.learning_rate, config.optim.critic_learning_rate
    new = ["4.weight", "4.bias"]
    model = Trainable("model", objective.model, config, zero_stage=zero_stage, learning_rate=rate, new_names=new)
    stage = min(zero_stage, 1)
    critics = Trainable("critics", objective.critics, config, zero_stage=stage, learning_rate=critic_rate)
    return Updater(config, objective, model, critics, lambda batch, training: batch, device)


def train(updater: Updater, start: int, stop: int) -> list[UpdateReport]:
    return [updater.update(step, share(clips(step, poisoned=step == SKIPPED))) for step in range(start, stop)]


def plain_torch(precision: str) -> SimpleNamespace:
    """The same updates without DeepSpeed: whole batch micro batch by micro batch, torch's clipping, our AdamW."""
    config, objective = config_of(precision), ToyObjective(1)
    optim, modules = config.optim, {"model": objective.model, "critics": objective.critics}
    rates = {"model": (optim.learning_rate, ["4.weight", "4.bias"]), "critics": (optim.critic_learning_rate, [])}
    optimizers = {}
    for name, (rate, new) in rates.items():
        groups = parameter_groups(modules[name], optim, learning_rate=rate, new_names=new)
        optimizers[name] = AdamWithEma(groups, betas=optim.betas, eps=optim.eps, ema_decay=optim.ema_decay)
    norms = []
    for step in range(STEPS):
        if step == SKIPPED:
            continue
        for start in range(0, GLOBAL_BATCH, MICRO_BATCH):
            batch = cut(clips(step), start, MICRO_BATCH)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                losses = objective.model_losses(objective.model, None, batch)
                critic_losses = objective.critic_losses(objective.critics, losses.critic_inputs)
            ((losses.total + critic_losses.total) * MICRO_BATCH / GLOBAL_BATCH).backward()
        for name, module in modules.items():
            norms.append(nn.utils.clip_grad_norm_(module.parameters(), optim.clip_gradient_norm).item())
            set_learning_rates(optimizers[name], learning_rate_factor(step, optim))
            optimizers[name].step()
            optimizers[name].zero_grad()
    return SimpleNamespace(modules=modules, optimizers=optimizers, norms=norms)


def state_of(trainable: Trainable) -> dict[str, torch.Tensor]:
    return {f"{key}/{name}": tensor.clone() for key in KEYS for name, tensor in trainable.gather(key)}


def worst_difference(trainable: Trainable, reference: SimpleNamespace) -> float:
    module, optimizer = reference.modules[trainable.name], reference.optimizers[trainable.name]
    expected = {}
    for name, parameter in module.named_parameters():
        state = optimizer.state[parameter]
        expected |= {f"{key}/{name}": parameter if key == "weights" else state[key] for key in KEYS}
    found = state_of(trainable)
    assert found.keys() == expected.keys()
    return max((found[name] - expected[name]).abs().max().item() for name in expected)


def compare_with_plain_torch(device: torch.device) -> dict[str, dict]:
    results = {}
    for precision in ("fp32", "bf16"):
        reference = plain_torch(precision)
        for stage in (0, 1, 2, 3):
            updater = make_updater(stage, precision, device)
            before_skip = train(updater, 0, SKIPPED) and [state_of(t) for t in updater.trainables]
            skip = train(updater, SKIPPED, SKIPPED + 1)[0]
            after_skip = [state_of(t) for t in updater.trainables]
            reports = train(updater, SKIPPED + 1, STEPS)
            results[f"{stage} {precision}"] = {
                "worst": max(worst_difference(trainable, reference) for trainable in updater.trainables),
                "gradient_norm": reports[-1].gradient_norms["model"] / reference.norms[-2],
                "skip_applied": skip.applied,
                "skip_changed": any(
                    not torch.equal(old[n], new[n])
                    for old, new in zip(before_skip, after_skip, strict=True)
                    for n in old
                ),
                "bad_keys": distributed.gather_objects([list(bad.keys) for bad in updater.bad_batches]),
                "updates": [trainable.num_updates for trainable in updater.trainables],
            }
    return results


def write_checkpoints(device: torch.device, folder: Path) -> None:
    for stage in (0, 1, 2, 3):
        updater = make_updater(stage, "fp32", device)
        train(updater, 0, STEPS - 2)
        saver = Saver(folder / f"stage{stage}", updater.trainables, keep=1, keep_every=0, overlap=False)
        assert [outcome.committed for outcome in saver.begin(3, {"step": 3}, {}, lambda: None)] == [True]


def read_checkpoints(device: torch.device, own_folder: Path, other_folder: Path) -> dict[str, list]:
    """Loads each stage's checkpoint into each stage, every other one of another number of ranks; then trains on."""
    reference, results = plain_torch("fp32"), {}
    for source in (0, 1, 2, 3):
        for target in (0, 1, 2, 3):
            folder = (own_folder, other_folder)[(source + target) % 2]
            updater = make_updater(target, "fp32", device, seed=99)
            newest = checkpoint.find_newest(folder / f"stage{source}")
            checkpoint.load(newest, updater.trainables)
            read_back = stored_difference(updater, folder / f"stage{source}" / "checkpoints" / "step-3")
            train(updater, STEPS - 2, STEPS)
            worst = max(worst_difference(trainable, reference) for trainable in updater.trainables)
            results[f"{source} -> {target}"] = [run_folder.read_state(newest)["step"], read_back, worst]
    return results


def stored_difference(updater: Updater, directory: Path) -> float:
    """Compares every tensor that was loaded with the files, put together by hand."""
    from safetensors.torch import load_file

    worst = 0.0
    for trainable in updater.trainables:
        pieces: dict[str, list[torch.Tensor]] = {}
        for path in sorted((directory / trainable.name).glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                pieces.setdefault(name, []).append(tensor)
        for name, tensor in state_of(trainable).items():
            worst = max(worst, (tensor.flatten() - torch.cat(pieces[name])).abs().max().item())
    return worst


def main(output: str, own_folder: str, other_folder: str) -> None:
    device = process.start(config_of("fp32"))
    results: dict[str, dict] = {"plain_torch": compare_with_plain_torch(device)}
    write_checkpoints(device, Path(own_folder))
    if other_folder:
        results["loaded"] = read_checkpoints(device, Path(own_folder), Path(other_folder))
    if distributed.is_main():
        Path(output).write_text(json.dumps(results))
    process.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
