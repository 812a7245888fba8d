"""The learnable temperature of the contrastive loss."""

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """Softmax temperature, learnt as its logarithm and kept above a floor.

    The parameter has shape (1,), since DeepSpeed refuses 0-dimensional ones. Its gradient vanishes below the floor,
    where the optimizer's momentum alone could still carry it; the value read stays at the floor.
    """

    def __init__(self, start: float, floor: float):
        super().__init__()
        self.floor = floor
        self.log_value = nn.Parameter(torch.full((1,), math.log(start)))

    def forward(self) -> Tensor:
        """Returns (1,) float32."""
        return self.log_value.float().clamp_min(math.log(self.floor)).exp()
