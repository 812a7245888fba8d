"""What Open-AVFF's two networks are made of: encoders, decoders and A2V/V2A under the key names of its files.

Nothing here is meant to be trained or copied: docs/method.md lists what is wrong with it. Parameters that Open-AVFF
registers and never reads are registered too, so that its files load strictly; every value comes from a file, so
initial values mean nothing.

Source:
    github.com/JoeLeelyf/OpenAVFF at 1197e14, written anew from its key names, shapes and order of operations.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avff.models.transformer import MLP_RATIO, Attention, Block

WIDTH, HEADS = 768, 12
LAYER_NORM_EPS = 1e-5
NUM_FRAMES, IMAGE_SIZE, NUM_MEL_FRAMES, NUM_MEL_BINS = 16, 224, 1024, 128
PATCH, TUBELET_FRAMES = 16, 2
NUM_SLICES = 8
OPEN_AVFF_MEL = (-5.081, 4.4849)
"""Mean and standard deviation that its log-mel spectrograms are normalised by."""
VIDEO_GRID = (NUM_FRAMES // TUBELET_FRAMES, IMAGE_SIZE // PATCH, IMAGE_SIZE // PATCH)
"""Tokens by (time, height, width), first axis slowest."""
AUDIO_GRID = (NUM_MEL_BINS // PATCH, NUM_MEL_FRAMES // PATCH)
"""Tokens by (frequency, time): frequency first, so that what it calls a slice is a mel band over the whole time."""
VIDEO_TOKENS = VIDEO_GRID[0] * VIDEO_GRID[1] * VIDEO_GRID[2]
AUDIO_TOKENS = AUDIO_GRID[0] * AUDIO_GRID[1]


@dataclass(frozen=True)
class OpenAvffSize:
    """What may differ between its files; the defaults are those of the published ones."""

    encoder_depth: int = 12
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6


# ------------------------------------------------------------------------------------------- blocks


class AudioBlock(Block):
    """Our block without a bias in qkv."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.attn.qkv = nn.Linear(width, 3 * width, bias=False)


class VideoBlock(AudioBlock):
    """The same under MARLIN's names: `mlp.layers.0.linear`, `mlp.layers.1.linear`."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.mlp = VideoMlp(width)  # type: ignore[assignment]


class VideoMlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList([WrappedLinear(width, MLP_RATIO * width), WrappedLinear(MLP_RATIO * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](F.gelu(self.layers[0](x)))


class WrappedLinear(nn.Module):
    """A linear layer one name further down."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def _blocks(kind: type[AudioBlock], width: int, depth: int, heads: int) -> nn.Sequential:
    return nn.Sequential(*(kind(width, heads) for _ in range(depth)))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


def _table(tokens: int, width: int, *, learns: bool) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, tokens, width), requires_grad=learns)


# ------------------------------------------------------------------------------------------- encoders


class AudioEncoder(nn.Module):
    """Spectrogram to tokens, frequency first."""

    def __init__(self, depth: int):
        super().__init__()
        self.pos_embed = _table(AUDIO_TOKENS, WIDTH, learns=True)
        self.modality = _table(1, WIDTH, learns=True)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, WIDTH, kernel_size=PATCH, stride=PATCH)})
        self.norm = _norm(WIDTH)
        self.transformer = _blocks(AudioBlock, WIDTH, depth, HEADS)

    def forward(self, mel_BMF: Tensor) -> Tensor:
        """Returns (B, 512, D), token f * 64 + t."""
        patches = self.patch_embed["proj"](rearrange(mel_BMF, "b m f -> b 1 f m"))
        tokens_BLD = rearrange(patches, "b d f t -> b (f t) d")
        return self.norm(self.transformer(tokens_BLD + self.pos_embed + self.modality))


class VideoEncoder(nn.Module):
    """Frames to tokens, (time, height, width) with a fixed table of positions and no embedding of the modality."""

    def __init__(self, depth: int):
        super().__init__()
        size = (TUBELET_FRAMES, PATCH, PATCH)
        self.patch_embedding = nn.ModuleDict({"projection": nn.Conv3d(3, WIDTH, kernel_size=size, stride=size)})
        self.pos_embedding = FixedPositions(VIDEO_TOKENS, WIDTH)
        self.norm = _norm(WIDTH)
        self.blocks = _blocks(VideoBlock, WIDTH, depth, HEADS)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Returns (B, 1568, D)."""
        tokens_BLD = rearrange(self.patch_embedding["projection"](video_BCTHW), "b d t h w -> b (t h w) d")
        return self.norm(self.blocks(self.pos_embedding(tokens_BLD)))


class FixedPositions(nn.Module):
    """Adds a table that is stored in the file and never learns."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.emb = _table(tokens, width, learns=False)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        return tokens_BLD + self.emb


# ------------------------------------------------------------------------------------------- decoders


class AudioDecoder(nn.Module):
    """Tokens to a spectrogram, without positions: the table that it registers is never read."""

    def __init__(self, size: OpenAvffSize):
        super().__init__()
        width = size.decoder_width
        self.decoder_modality = _table(1, width, learns=True)
        self.decoder_pos_embed = _table(AUDIO_TOKENS, width, learns=True)
        self.decoder_embed = nn.Linear(WIDTH, width)
        self.blocks = _blocks(AudioBlock, width, size.decoder_depth, size.decoder_heads)
        self.decoder_norm = _norm(width)
        self.decoder_pred = nn.Linear(width, PATCH * PATCH)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Returns (B, 1, F, M)."""
        patches_BLP = self.decoder_pred(self.decoder_norm(self.blocks(self.decoder_embed(tokens_BLD))))
        frequency, time = AUDIO_GRID
        return rearrange(patches_BLP, "b (f t) (pf pt) -> b 1 (f pf) (t pt)", f=frequency, t=time, pf=PATCH, pt=PATCH)


class VideoDecoder(nn.Module):
    """Tokens to frames; its mask token is never read."""

    def __init__(self, size: OpenAvffSize):
        super().__init__()
        width = size.decoder_width
        self.mask_token = _table(1, width, learns=True)
        self.norm = _norm(width)
        self.pos_embedding = FixedPositions(VIDEO_TOKENS, width)
        self.blocks = _blocks(VideoBlock, width, size.decoder_depth, size.decoder_heads)
        self.head = nn.Linear(width, 3 * TUBELET_FRAMES * PATCH * PATCH)
        self.decoder_patch_embed = nn.Linear(WIDTH, width)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Returns (B, C, T, H, W)."""
        tokens_BLD = self.pos_embedding(self.decoder_patch_embed(tokens_BLD))
        patches_BLP = self.head(self.norm(self.blocks(tokens_BLD)))
        time, height, width = VIDEO_GRID
        return rearrange(
            patches_BLP,
            "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)",
            t=time,
            h=height,
            w=width,
            pt=TUBELET_FRAMES,
            ph=PATCH,
            pw=PATCH,
        )


# ------------------------------------------------------------------------------------------- between the modalities


class CrossModal(nn.Module):
    """Tokens of one modality to as many slices of the other: a linear map over all tokens at once, then one block."""

    def __init__(self, given_tokens: int, wanted_tokens: int, attend_over_batch: bool):
        super().__init__()
        self.mlp = WrappedLinear(given_tokens, wanted_tokens)
        self.transformer = PostNormBlock(attend_over_batch)

    def forward(self, tokens_BSLD: Tensor) -> Tensor:
        mapped_BDL = self.mlp(rearrange(tokens_BSLD, "b s l d -> b d (s l)"))
        return rearrange(self.transformer(mapped_BDL.transpose(1, 2)), "b (s l) d -> b s l d", s=tokens_BSLD.shape[1])


class PostNormBlock(nn.Module):
    """Attention and a ReLU network, each followed by its norm.

    Its attention takes the batch for the sequence, so that token l of a clip attends to token l of the other clips of
    its batch and to nothing else. Seen as a batch of one, every token attends to itself alone with weight 1, and
    attention is `out_proj(W_v x + b_v)`: what a clip alone in its batch gives there, whatever else is in ours.

    Args:
        attend_over_batch: do as published; a clip's result then depends on the others of its batch.
    """

    def __init__(self, attend_over_batch: bool):
        super().__init__()
        self.attend_over_batch = attend_over_batch
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.norm1 = _norm(WIDTH)
        self.norm2 = _norm(WIDTH)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = self.norm1(x_BLD + self._attend(x_BLD))
        return self.norm2(x_BLD + self.fc2(F.relu(self.fc1(x_BLD))))

    def _attend(self, x_BLD: Tensor) -> Tensor:
        attention = self.attention
        if self.attend_over_batch:
            return attention(x_BLD, x_BLD, x_BLD, need_weights=False)[0]
        values = F.linear(x_BLD, attention.in_proj_weight[2 * WIDTH :], attention.in_proj_bias[2 * WIDTH :])
        return attention.out_proj(values)
