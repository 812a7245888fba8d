"""The pre-norm transformer block that every network here is made of."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avff import seeding
from avff.config import ActivationCheckpointing, TransformerSize

MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a sequence; sequences never see each other."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.attend(self.qkv(x_BLD))

    def attend(self, qkv_BLD: Tensor) -> Tensor:
        """Mixes the values of a sequence by its queries and keys, which lie beside one another in `qkv_BLD`."""
        # Views of one tensor, apart before they are turned: the backward pass puts their gradients together in one copy.
        parts_BLND = rearrange(qkv_BLD, "b l (three n d) -> b l three n d", three=3, n=self.heads).unbind(2)
        q, k, v = (part_BLND.transpose(1, 2) for part_BLND in parts_BLND)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)"))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.contract(self.fc1(x_BLD))

    def contract(self, hidden_BLD: Tensor) -> Tensor:
        return self.fc2(F.gelu(hidden_BLD))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); equal to timm's `Block` with qkv_bias=True.

    `torch.compile` is meant to be applied to this class: shapes are static and no seed is hashed inside.

    Args:
        recomputes: compute norms, GELU and casts again in the backward pass instead of keeping their results.
    """

    def __init__(self, width: int, heads: int, layer_norm_eps: float, *, recomputes: bool = False):
        super().__init__()
        self.recomputes = recomputes
        self.norm1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = Mlp(width)

    def forward(self, x_BLD: Tensor, branch_scale_B2: Tensor | None = None) -> Tensor:
        """
        Args:
            branch_scale_B2: factor of the attention and the MLP branch of each clip (drop path); None is 1.
        """
        if branch_scale_B2 is None:
            x_BLD = x_BLD + self._attention(x_BLD)
            return x_BLD + self._mlp(x_BLD)
        attention_B11, mlp_B11 = branch_scale_B2.to(x_BLD.dtype)[:, :, None, None].unbind(1)
        x_BLD = x_BLD + attention_B11 * self._attention(x_BLD)
        return x_BLD + mlp_B11 * self._mlp(x_BLD)

    def _attention(self, x_BLD: Tensor) -> Tensor:
        if not (self.recomputes and torch.is_grad_enabled()):
            return self.attn(self.norm1(x_BLD))
        return self.attn.attend(_recomputed(self._normed_qkv, x_BLD))

    def _mlp(self, x_BLD: Tensor) -> Tensor:
        if not (self.recomputes and torch.is_grad_enabled()):
            return self.mlp(self.norm2(x_BLD))
        return _recomputed(self.mlp.contract, _recomputed(self._normed_hidden, x_BLD))

    def _normed_qkv(self, x_BLD: Tensor) -> Tensor:
        return self.attn.qkv(self.norm1(x_BLD))

    def _normed_hidden(self, x_BLD: Tensor) -> Tensor:
        return self.mlp.fc1(self.norm2(x_BLD))


def _recomputed(function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
    """Runs a function that keeps nothing but its arguments for the backward pass, which runs it again.

    The second run ends where the last tensor that the backward pass needs is there. A function that ends in a matrix
    product therefore never repeats that product, for its operands are what is needed.
    """
    return checkpoint(function, *arguments, use_reentrant=False)


class Stack(nn.Module):
    """Blocks one after another and a final norm.

    Args:
        name: keys the drop-path draws, so that two stacks drop independently.
        drop_path: chance that the last block's branches are skipped for a clip; 0 at the first, linear between.
    """

    def __init__(
        self,
        size: TransformerSize,
        layer_norm_eps: float,
        name: str,
        drop_path: float = 0.0,
        activation_checkpointing: ActivationCheckpointing = "none",
    ):
        super().__init__()
        cheap = activation_checkpointing == "cheap"
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, layer_norm_eps, recomputes=cheap) for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.width, eps=layer_norm_eps)
        self.name = name
        self.drop_path = drop_path
        self.recomputes_blocks = activation_checkpointing == "blocks"

    def forward(self, x_BLD: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """
        Args:
            seed_B: int64, one per clip; needed for drop path in training only.
        """
        scales: list[Tensor | None] = [None] * len(self.blocks)
        if self.training and self.drop_path > 0 and seed_B is not None:
            scales = list(branch_scales(seed_B, self.name, len(self.blocks), self.drop_path).unbind(1))
        for block, scale_B2 in zip(self.blocks, scales, strict=True):
            if self.recomputes_blocks and torch.is_grad_enabled():
                x_BLD = _recomputed(block, x_BLD, scale_B2)
            else:
                x_BLD = block(x_BLD, scale_B2)
        return self.norm(x_BLD)


def branch_scales(seed_B: Tensor, name: str, depth: int, drop_path: float) -> Tensor:
    """Returns (B, depth, 2) factors: 0 where a branch is dropped, else 1 / (1 - rate), so that its mean is 1."""
    rate_N1 = torch.linspace(0, drop_path, depth, device=seed_B.device)[:, None]
    kept = seeding.uniform(seed_B, f"drop_path/{name}", depth, 2) >= rate_N1
    return kept / (1 - rate_N1)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, unit norms: what MAE starts from."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
