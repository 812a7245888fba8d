"""Sizes of what learns, from a config alone: the networks are built without memory."""

import math
from typing import NamedTuple

import torch
from torch import nn

from avff.config import Config
from avff.engine.deepspeed_config import critics_zero_stage
from avff.engine.optimizer import parameter_groups
from avff.models.build import build_critics, build_model


class Sizes(NamedTuple):
    """Elements of one module that one DeepSpeed engine trains.

    Attributes:
        name: `model` or `critics`.
        parameters: of each parameter, in the module's order.
        groups: of each optimizer group together.
        buffer_bytes: of what does not learn; every rank holds all of it.
    """

    name: str
    parameters: tuple[int, ...]
    groups: tuple[int, ...]
    buffer_bytes: int

    def zero_stage(self, config: Config) -> int:
        """Returns that of its engine."""
        return config.engine.zero_stage if self.name == "model" else critics_zero_stage(config)

    @property
    def total(self) -> int:
        return sum(self.parameters)

    def padded_groups(self, num_ranks: int) -> tuple[int, ...]:
        """ZeRO 1 and 2 cut each group into equal runs that start at multiples of two elements."""
        unit = 2 * num_ranks
        return tuple(unit * math.ceil(group / unit) for group in self.groups)

    def padded_parameters(self, num_ranks: int) -> tuple[int, ...]:
        """ZeRO 3 cuts each parameter into equal runs."""
        return tuple(num_ranks * math.ceil(parameter / num_ranks) for parameter in self.parameters)


def trainable_sizes(config: Config) -> list[Sizes]:
    """Returns the sizes of the model, and of the critics where there are any; the same at any batch and ZeRO stage."""
    with torch.device("meta"):
        model = build_model(config)
        critics = (
            build_critics(config) if config.stage == "pretrain" and config.pretrain.adversarial_weight > 0 else None
        )
    found = [_sizes("model", model, config)]
    return found + ([_sizes("critics", critics, config)] if critics else [])


def _sizes(name: str, module: nn.Module, config: Config) -> Sizes:
    groups = parameter_groups(module, config.optim, learning_rate=config.optim.learning_rate)
    return Sizes(
        name,
        tuple(parameter.numel() for parameter in module.parameters()),
        tuple(sum(parameter.numel() for parameter in group["params"]) for group in groups),
        sum(buffer.numel() * buffer.element_size() for buffer in module.buffers()),
    )
