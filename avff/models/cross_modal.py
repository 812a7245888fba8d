"""A2V and V2A: what one modality's tokens say about the other's, slice by slice."""

import torch
from torch import Tensor, nn

from avff.config import ModelConfig
from avff.models.patches import take_slices
from avff.models.transformer import Block


class CrossModal(nn.Module):
    """Predicts the tokens of one modality from the other's tokens of the same slice.

    Every slice goes through the same weights on its own: a linear map over the token axis matches the counts (64
    audio tokens to 196 video tokens), the slice's position is added, one block attends inside the slice.

    Args:
        tokens_in, tokens_out: tokens per slice of the source and the target modality.

    Source:
        docs/method.md. Open-AVFF maps the visible slices together and by ordinal, so its map changes shape in
        stage 3; per slice, all weights carry over.
    """

    def __init__(self, tokens_in: int, tokens_out: int, num_slices: int, model: ModelConfig):
        super().__init__()
        width, heads = model.encoder.width, model.encoder.heads
        self.token_map = nn.Linear(tokens_in, tokens_out)
        self.slice_position = nn.Parameter(0.02 * torch.randn(1, num_slices, 1, width))
        self.block = Block(width, heads, model.fusion_layer_norm_eps)
        self.norm = nn.LayerNorm(width, eps=model.fusion_layer_norm_eps)

    def forward(self, tokens_BSLD: Tensor, slices_BS: Tensor | None = None) -> Tensor:
        """
        Args:
            tokens_BSLD: source tokens by slice.
            slices_BS: which slice of the clip each is; None when all are given in order.

        Returns:
            (B, S, tokens_out, D) predicted tokens of the same slices.
        """
        position_BS1D = self.slice_position.expand(tokens_BSLD.shape[0], -1, -1, -1)
        if slices_BS is not None:
            position_BS1D = take_slices(position_BS1D, slices_BS)
        mapped_BSLD = self.token_map(tokens_BSLD.transpose(2, 3)).transpose(2, 3) + position_BS1D
        tokens_BSLD = self.block(mapped_BSLD.flatten(0, 1)).unflatten(0, mapped_BSLD.shape[:2])
        return self.norm(tokens_BSLD)
