"""One modality's encoder and decoder."""

import torch
from torch import Tensor, nn

from avff.config import Modality, ModelConfig
from avff.models.patches import TokenGrid, join_slices, split_slices, take_slices
from avff.models.positions import sincos_table
from avff.models.transformer import Stack


class Encoder(nn.Module):
    """Patches to tokens: a linear embedding, position, modality, then a ViT.

    Args:
        name: "video" or "audio"; keys the drop-path draws.
    """

    def __init__(self, grid: TokenGrid, model: ModelConfig, name: Modality):
        super().__init__()
        width = model.encoder.width
        self.num_slices = grid.num_slices
        self.patch_embed = nn.Linear(grid.patch_values, width)
        self.position_table = nn.Parameter(sincos_table(grid.shape, width))
        self.modality_embedding = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.stack = Stack(
            model.encoder,
            model.layer_norm_eps(name),
            f"{name}_encoder",
            model.drop_path,
            model.activation_checkpointing,
        )

    def forward(self, patches_BLP: Tensor, seed_B: Tensor, visible_BS: Tensor | None = None) -> Tensor:
        """
        Args:
            patches_BLP: float, any precision; cast to that of the weights.
            visible_BS: slices to encode; the others never enter. None encodes all.

        Returns:
            (B, S, L, D) tokens by slice: all slices, or those of `visible_BS` in that order.
        """
        tokens_BLD = self.patch_embed(patches_BLP.to(self.patch_embed.weight.dtype))
        tokens_BLD = tokens_BLD + self.position_table + self.modality_embedding
        num_slices = self.num_slices
        if visible_BS is not None:
            tokens_BLD = join_slices(take_slices(split_slices(tokens_BLD, num_slices), visible_BS))
            num_slices = visible_BS.shape[1]
        return split_slices(self.stack(tokens_BLD, seed_B), num_slices)


class Decoder(nn.Module):
    """Fused tokens of a whole clip to pixels (or mel values) of the hidden patches."""

    def __init__(self, grid: TokenGrid, model: ModelConfig, name: Modality):
        super().__init__()
        width = model.decoder.width
        self.embed = nn.Linear(model.encoder.width, width)
        self.position_table = nn.Parameter(sincos_table(grid.shape, width))
        self.stack = Stack(
            model.decoder,
            model.layer_norm_eps(name),
            f"{name}_decoder",
            activation_checkpointing=model.activation_checkpointing,
        )
        self.head = nn.Linear(width, grid.patch_values)

    def forward(self, fused_BSLD: Tensor, masked_BS: Tensor) -> Tensor:
        """
        Args:
            fused_BSLD: one token per patch of the clip.
            masked_BS: slices to predict; the head runs on their tokens only.

        Returns:
            (B, K, P) predictions for the tokens of `masked_BS`.
        """
        num_slices = fused_BSLD.shape[1]
        tokens_BLD = self.stack(self.embed(join_slices(fused_BSLD)) + self.position_table)
        return self.head(join_slices(take_slices(split_slices(tokens_BLD, num_slices), masked_BS)))
