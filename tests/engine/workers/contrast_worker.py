"""One update of the pretraining objective per config: its losses and the gradient of the model.

Arguments: a JSON file with plain config values by name, an output file.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from avff import distributed
from avff.batch import ModelInputs
from avff.config import Config
from avff.data.stream import rank_places
from avff.engine import process
from avff.engine.deepspeed_config import critics_zero_stage
from avff.engine.trainable import Trainable
from avff.engine.update import Updater
from avff.objectives import build_objective
from avff.strict_yaml import from_dict


def global_batch(config: Config) -> ModelInputs:
    clip, rng = config.clip, torch.Generator().manual_seed(3)
    clips = config.engine.global_batch_size
    seed_B = torch.randint(0, 2**62, (clips,), generator=rng)
    return ModelInputs(
        torch.randn(clips, clip.num_frames, 3, clip.image_size, clip.image_size, generator=rng),
        torch.randn(clips, clip.num_mel_frames, clip.num_mel_bins, generator=rng),
        *(seed_B,) * 4,
    )


def share(config: Config) -> list[ModelInputs]:
    """This rank's micro batches, in the loader's order."""
    total, micro = config.engine.global_batch_size, config.engine.micro_batch_size
    places = rank_places(total, config.group_size, distributed.rank(), distributed.world_size())
    batch = global_batch(config)
    return [ModelInputs(*(field[part] for field in batch)) for part in torch.from_numpy(places).split(micro)]


def update(config: Config, device: torch.device) -> tuple[dict[str, float], dict[str, Tensor]]:
    objective, stage = build_objective(config), config.engine.zero_stage
    model = Trainable("model", objective.model, config, zero_stage=stage, learning_rate=1e-3)
    stage = critics_zero_stage(config)
    critics = Trainable("critics", objective.critics, config, zero_stage=stage, learning_rate=1e-3)
    updater = Updater(config, objective, model, critics, lambda batch, training: batch, device)
    report = updater.update(0, share(config))
    # After the first update, Adam's first moment is (1 - beta1) times the gradient, whatever ZeRO did with that.
    scale = 1 - config.optim.betas[0]
    return report.terms, {name: moment / scale for name, moment in model.gather("exp_avg")}


def main(configs_path: str, output: str) -> None:
    values = json.loads(Path(configs_path).read_text())
    configs = {name: from_dict(Config, value, where=name) for name, value in values.items()}
    device = process.start(next(iter(configs.values())))
    results = {name: update(config, device) for name, config in configs.items()}
    if distributed.is_main():
        torch.save(results, output)
    process.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
