"""LoRA: frozen encoders whose attention matrices learn a low-rank change each."""

import dataclasses
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.encoder import Encoder
from avff.models.freeze import freeze

DOWN, UP = ".lora_down", ".lora_up"
"""Ends of the keys that a network with LoRA has besides those of one without."""

ADAPTED = ("qkv", "proj")
"""Linear layers of each block's attention that are changed."""


class LoraLinear(nn.Module):
    """`x (W + alpha / rank * up down)^T + bias` with W and bias frozen; a change of zero at first.

    W and bias lie under the names that a plain linear layer has.

    Args:
        base: layer to start from; its tensors are taken over, not copied.

    Source:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1. The random factor is drawn as
        torch draws a linear layer's weight (the paper: a Gaussian); the zero factor is `up`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.scale = alpha / rank
        self.register_buffer("weight", base.weight.detach())
        self.register_buffer("bias", base.bias.detach())
        self.lora_down = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_down), self.lora_up)
        return F.linear(x, self.weight, self.bias) + self.scale * change


def add_lora(encoder: Encoder, rank: int, alpha: float) -> None:
    """Freezes an encoder and gives its attention layers changes that learn, drawn from torch's generator."""
    freeze(encoder)
    for block in encoder.stack.blocks:
        for name in ADAPTED:
            setattr(block.attn, name, LoraLinear(getattr(block.attn, name), rank, alpha))


def is_lora(name: str) -> bool:
    """True for keys of a state dict that only a network with LoRA has."""
    return name.endswith((DOWN, UP))


def merge_lora(tensors: Mapping[str, Tensor], config: Config) -> tuple[dict[str, Tensor], Config]:
    """Adds the learnt changes to the weights that they belong to: the same function, in a network without LoRA.

    Returns:
        tensors under the plain network's keys, and its config; both as they were where the config asks for no LoRA.

    Raises:
        CheckpointError: half of a change or the weight under it is missing.
    """
    if config.finetune.encoders != "lora":
        return dict(tensors), config
    merged = {name: tensor for name, tensor in tensors.items() if not is_lora(name)}
    layers = dict.fromkeys(name.removesuffix(DOWN).removesuffix(UP) for name in tensors if is_lora(name))
    needed = (layer + end for layer in layers for end in (".weight", DOWN, UP))
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise CheckpointError(f"LoRA cannot be merged into the weights: {', '.join(missing)} missing")
    for layer in layers:
        change = tensors[layer + UP].double() @ tensors[layer + DOWN].double()
        weight = tensors[f"{layer}.weight"]
        scale = config.finetune.lora_alpha / config.finetune.lora_rank
        merged[f"{layer}.weight"] = (weight.double() + scale * change).to(weight.dtype)
    return merged, dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, encoders="train"))
