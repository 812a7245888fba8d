"""What the contrastive loss compares, and its learnable temperature."""

import math

import torch
from torch import Tensor, nn

from avff.config import ContrastiveLevel


class Temperature(nn.Module):
    """Softmax temperature: a fixed floor plus a learnt positive excess, so that a gradient always reaches it.

    The parameter has shape (1,), since DeepSpeed refuses 0-dimensional ones.
    """

    def __init__(self, start: float, floor: float):
        super().__init__()
        self.floor = floor
        self.log_excess = nn.Parameter(torch.full((1,), math.log(start - floor)))

    def forward(self) -> Tensor:
        """Returns (1,) float32, above the floor."""
        return self.floor + self.log_excess.float().exp()


def contrast_embeddings(tokens_BSLD: Tensor, level: ContrastiveLevel) -> Tensor:
    """Averages encoder tokens into what the contrastive loss compares.

    Args:
        level: `slice` takes the mean of each slice's tokens (the paper); `centered_slice` subtracts the clip's mean
            over time from them, so that neither who speaks nor the background can tell the pairs apart, only what
            changes from slice to slice; `clip` takes one mean over all slices.

    Returns:
        (B, S, D) float32; S is 1 at clip level.
    """
    means_BSD = tokens_BSLD.float().mean(dim=2)
    if level == "clip":
        return means_BSD.mean(dim=1, keepdim=True)
    if level == "centered_slice":
        return means_BSD - means_BSD.mean(dim=1, keepdim=True)
    return means_BSD
