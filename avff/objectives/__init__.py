"""What one training step computes; each objective owns its networks."""

from avff.config import Config
from avff.objectives.finetune import FinetuneObjective
from avff.objectives.losses import CriticInputs, StepLosses
from avff.objectives.pretrain import PretrainObjective, Reconstruction

Objective = PretrainObjective | FinetuneObjective

__all__ = [
    "CriticInputs",
    "FinetuneObjective",
    "Objective",
    "PretrainObjective",
    "Reconstruction",
    "StepLosses",
    "build_objective",
]


def build_objective(config: Config) -> Objective:
    """Returns the objective of the config's stage, with networks freshly drawn from `config.seed`."""
    return PretrainObjective(config) if config.stage == "pretrain" else FinetuneObjective(config)
