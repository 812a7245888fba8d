"""Key layouts of published picture encoders, seeded stand-ins for their weights, and their forward passes.

Written from the public architectures as functions of a table of weights, so that a test reads what a file would hold.
Dropout and drop path are left out: they do nothing in evaluation.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avff.config import IMAGENET_MEAN, IMAGENET_STD, Config
from avff.models.build import build_model
from avff.models.classifier import Classifier
from avff.models.importers import source as importing
from avff.models.importers.source import Conversion, Source
from avff.models.patches import patchify_video
from avff.models.pretrain import PretrainModel

Shapes = dict[str, tuple[int, ...]]
Weights = Mapping[str, Tensor]
NUM_TOKENS = 8 * 14 * 14


class Size(NamedTuple):
    """Of one transformer."""

    width: int
    depth: int
    heads: int


TINY, TINY_DECODER = Size(96, 4, 3), Size(64, 2, 2)
SMALL, SMALL_DECODER = Size(384, 12, 6), Size(192, 4, 3)
BASE, BASE_DECODER = Size(768, 12, 12), Size(384, 4, 6)
LARGE, LARGE_DECODER = Size(1024, 24, 16), Size(512, 12, 8)


# ------------------------------------------------------------------------------------------- layouts


def linear(name: str, width_in: int, width_out: int) -> Shapes:
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def split_bias_block(start: str, width: int, fc1: str = "mlp.fc1", fc2: str = "mlp.fc2") -> Shapes:
    """VideoMAE's and MARLIN's block: biases of q and of v are parameters of their own, k has none."""
    return {
        **norm(f"{start}norm1", width),
        f"{start}attn.q_bias": (width,),
        f"{start}attn.v_bias": (width,),
        f"{start}attn.qkv.weight": (3 * width, width),
        **linear(f"{start}attn.proj", width, width),
        **norm(f"{start}norm2", width),
        **linear(f"{start}{fc1}", width, 4 * width),
        **linear(f"{start}{fc2}", 4 * width, width),
    }


def marlin_block(start: str, width: int) -> Shapes:
    return split_bias_block(start, width, "mlp.layers.0.linear", "mlp.layers.1.linear")


def hub_block(start: str, width: int) -> Shapes:
    """VideoMAE's block in the model hub's code."""
    attention = f"{start}attention.attention."
    return {
        f"{attention}q_bias": (width,),
        f"{attention}v_bias": (width,),
        **{f"{attention}{part}.weight": (width, width) for part in ("query", "key", "value")},
        **linear(f"{start}attention.output.dense", width, width),
        **linear(f"{start}intermediate.dense", width, 4 * width),
        **linear(f"{start}output.dense", 4 * width, width),
        **norm(f"{start}layernorm_before", width),
        **norm(f"{start}layernorm_after", width),
    }


def timm_block(start: str, width: int) -> Shapes:
    return {
        **norm(f"{start}norm1", width),
        **linear(f"{start}attn.qkv", width, 3 * width),
        **linear(f"{start}attn.proj", width, width),
        **norm(f"{start}norm2", width),
        **linear(f"{start}mlp.fc1", width, 4 * width),
        **linear(f"{start}mlp.fc2", 4 * width, width),
    }


def stack(block: Callable[[str, int], Shapes], start: str, size: Size) -> Shapes:
    return {name: shape for i in range(size.depth) for name, shape in block(f"{start}{i}.", size.width).items()}


def marlin_layout(size: Size, decoder: Size | None = None) -> Shapes:
    """MARLIN's encoder file; with a decoder its full file, as a training checkpoint holds it."""
    shapes: Shapes = {
        "encoder.patch_embedding.projection.weight": (size.width, 3, 2, 16, 16),
        "encoder.patch_embedding.projection.bias": (size.width,),
        "encoder.pos_embedding.emb": (1, NUM_TOKENS, size.width),
        **norm("encoder.norm", size.width),
        **stack(marlin_block, "encoder.blocks.", size),
    }
    if decoder is None:
        return shapes
    return {
        **shapes,
        "enc_dec_proj.weight": (decoder.width, size.width),
        "decoder.mask_token": (1, 1, decoder.width),
        **norm("decoder.norm", decoder.width),
        "decoder.pos_embedding.emb": (1, NUM_TOKENS, decoder.width),
        **stack(marlin_block, "decoder.blocks.", decoder),
        **linear("decoder.head", decoder.width, 1536),
        **linear("discriminator.layers.0.linear", 1536, 4 * decoder.width),
        **linear("discriminator.layers.1.linear", 4 * decoder.width, 1),
    }


def videomae_layout(size: Size, decoder: Size) -> Shapes:
    """VideoMAE's pretraining file; both position tables are computed, not stored."""
    return {
        "mask_token": (1, 1, decoder.width),
        "encoder.patch_embed.proj.weight": (size.width, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": (size.width,),
        **stack(split_bias_block, "encoder.blocks.", size),
        **norm("encoder.norm", size.width),
        **stack(split_bias_block, "decoder.blocks.", decoder),
        **norm("decoder.norm", decoder.width),
        **linear("decoder.head", decoder.width, 1536),
        "encoder_to_decoder.weight": (decoder.width, size.width),
    }


def videomae_finetuned_layout(size: Size, num_classes: int = 400) -> Shapes:
    """The classifier of the mean over tokens."""
    return {
        "patch_embed.proj.weight": (size.width, 3, 2, 16, 16),
        "patch_embed.proj.bias": (size.width,),
        **stack(split_bias_block, "blocks.", size),
        **norm("fc_norm", size.width),
        **linear("head", size.width, num_classes),
    }


def videomae_hub_layout(size: Size, decoder: Size | None) -> Shapes:
    """The model hub's pretraining file; without a decoder its finetuned one."""
    encoder: Shapes = {
        "videomae.embeddings.patch_embeddings.projection.weight": (size.width, 3, 2, 16, 16),
        "videomae.embeddings.patch_embeddings.projection.bias": (size.width,),
        **stack(hub_block, "videomae.encoder.layer.", size),
    }
    if decoder is None:
        return {**encoder, **norm("fc_norm", size.width), **linear("classifier", size.width, 400)}
    return {
        "mask_token": (1, 1, decoder.width),
        **encoder,
        **norm("videomae.layernorm", size.width),
        "encoder_to_decoder.weight": (decoder.width, size.width),
        **stack(hub_block, "decoder.decoder_layers.", decoder),
        **norm("decoder.norm", decoder.width),
        **linear("decoder.head", decoder.width, 1536),
    }


def vit_layout(size: Size, num_classes: int = 0, side: int = 14) -> Shapes:
    """An image ViT with a class token: MAE's encoder file, or with classes timm's."""
    return {
        "cls_token": (1, 1, size.width),
        "pos_embed": (1, 1 + side**2, size.width),
        "patch_embed.proj.weight": (size.width, 3, 16, 16),
        "patch_embed.proj.bias": (size.width,),
        **stack(timm_block, "blocks.", size),
        **norm("norm", size.width),
        **(linear("head", size.width, num_classes) if num_classes else {}),
    }


def mae_layout(size: Size) -> Shapes:
    """MAE's full file: whatever the encoder, its decoder is 8 blocks deep and 512 wide."""
    decoder = Size(512, 8, 16)
    return {
        "mask_token": (1, 1, decoder.width),
        "decoder_pos_embed": (1, 197, decoder.width),
        **vit_layout(size),
        **linear("decoder_embed", size.width, decoder.width),
        **stack(timm_block, "decoder_blocks.", decoder),
        **norm("decoder_norm", decoder.width),
        **linear("decoder_pred", decoder.width, 768),
    }


def mae_finetuned_layout(size: Size) -> Shapes:
    """MAE's finetuned classifier of the mean over tokens."""
    shapes = vit_layout(size, num_classes=1000)
    return {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: s for name, s in shapes.items()}


# ------------------------------------------------------------------------------------------- weights


def seeded(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Draws weights that leave no part of a network idle: no bias is 0, no norm is 1, attention is far from uniform."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            is_norm = "norm" in name and name.endswith(".weight")
            weights[name] = 1 + 0.2 * values if is_norm else 0.2 * values
        elif shape[0] == 1:
            weights[name] = 0.5 * values
        else:
            weights[name] = 1.5 * values / math.sqrt(math.prod(shape[1:]))
    return weights


def blank(shapes: Shapes) -> dict[str, Tensor]:
    """Returns zeros of those shapes, which cost no memory until they are touched."""
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def counting_table(num_tokens: int, width: int) -> Tensor:
    """Returns the 1-D sinusoid number by number, as the transformer's paper writes it."""
    rows = [
        [(math.sin, math.cos)[j % 2](i / 10_000 ** ((j - j % 2) / width)) for j in range(width)]
        for i in range(num_tokens)
    ]
    return torch.tensor(rows)[None]


# ------------------------------------------------------------------------------------------- forward passes


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def apply_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention written out."""
    q, k, v = (rearrange(x, "b l (n d) -> b n l d", n=heads) for x in (q, k, v))
    shares = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return rearrange(shares @ v, "b n l d -> b l (n d)")


def run_split_bias_block(w: Weights, start: str, x: Tensor, heads: int, eps: float, fc: tuple[str, str]) -> Tensor:
    normed = apply_norm(w, f"{start}norm1", x, eps)
    q, k, v = F.linear(normed, w[f"{start}attn.qkv.weight"]).chunk(3, dim=-1)
    mixed = attend(q + w[f"{start}attn.q_bias"], k, v + w[f"{start}attn.v_bias"], heads)
    x = x + _linear(w, f"{start}attn.proj", mixed)
    hidden = F.gelu(_linear(w, f"{start}{fc[0]}", apply_norm(w, f"{start}norm2", x, eps)))
    return x + _linear(w, f"{start}{fc[1]}", hidden)


def run_hub_block(w: Weights, start: str, x: Tensor, heads: int, eps: float) -> Tensor:
    attention = f"{start}attention.attention."
    normed = apply_norm(w, f"{start}layernorm_before", x, eps)
    q = F.linear(normed, w[f"{attention}query.weight"], w[f"{attention}q_bias"])
    k = F.linear(normed, w[f"{attention}key.weight"])
    v = F.linear(normed, w[f"{attention}value.weight"], w[f"{attention}v_bias"])
    x = x + _linear(w, f"{start}attention.output.dense", attend(q, k, v, heads))
    hidden = F.gelu(_linear(w, f"{start}intermediate.dense", apply_norm(w, f"{start}layernorm_after", x, eps)))
    return x + _linear(w, f"{start}output.dense", hidden)


def run_timm_block(w: Weights, start: str, x: Tensor, heads: int, eps: float = 1e-6) -> Tensor:
    q, k, v = _linear(w, f"{start}attn.qkv", apply_norm(w, f"{start}norm1", x, eps)).chunk(3, dim=-1)
    x = x + _linear(w, f"{start}attn.proj", attend(q, k, v, heads))
    hidden = F.gelu(_linear(w, f"{start}mlp.fc1", apply_norm(w, f"{start}norm2", x, eps)))
    return x + _linear(w, f"{start}mlp.fc2", hidden)


def tubelet_tokens(w: Weights, layer: str, video_BCTHW: Tensor) -> Tensor:
    """Runs the 3-D convolution and lays its output out as (time, height, width)."""
    grid = F.conv3d(video_BCTHW, w[f"{layer}.weight"], w[f"{layer}.bias"], stride=(2, 16, 16))
    return rearrange(grid, "b d t h w -> b (t h w) d")


MARLIN_FC = ("mlp.layers.0.linear", "mlp.layers.1.linear")
VIDEOMAE_FC = ("mlp.fc1", "mlp.fc2")


def run_marlin(w: Weights, rgb_BCTHW: Tensor, size: Size) -> Tensor:
    """Tokens of MARLIN's encoder from RGB in [0, 1]."""
    x = tubelet_tokens(w, "encoder.patch_embedding.projection", rgb_BCTHW) + w["encoder.pos_embedding.emb"]
    for i in range(size.depth):
        x = run_split_bias_block(w, f"encoder.blocks.{i}.", x, size.heads, 1e-5, MARLIN_FC)
    return apply_norm(w, "encoder.norm", x, 1e-5)


def run_marlin_decoder(w: Weights, tokens_BLD: Tensor, size: Size) -> Tensor:
    """Tokens before the head, from encoder tokens of all positions."""
    x = F.linear(tokens_BLD, w["enc_dec_proj.weight"]) + w["decoder.pos_embedding.emb"]
    for i in range(size.depth):
        x = run_split_bias_block(w, f"decoder.blocks.{i}.", x, size.heads, 1e-5, MARLIN_FC)
    return apply_norm(w, "decoder.norm", x, 1e-5)


def run_videomae(w: Weights, video_BCTHW: Tensor, size: Size, start: str = "encoder.") -> Tensor:
    """Tokens before the last norm, from ImageNet-normalised frames."""
    x = tubelet_tokens(w, f"{start}patch_embed.proj", video_BCTHW) + counting_table(NUM_TOKENS, size.width)
    for i in range(size.depth):
        x = run_split_bias_block(w, f"{start}blocks.{i}.", x, size.heads, 1e-6, VIDEOMAE_FC)
    return x


def run_videomae_decoder(w: Weights, tokens_BLD: Tensor, size: Size) -> Tensor:
    """Predictions for all positions, values of a patch in order (time, height, width, colour)."""
    x = F.linear(tokens_BLD, w["encoder_to_decoder.weight"]) + counting_table(NUM_TOKENS, size.width)
    for i in range(size.depth):
        x = run_split_bias_block(w, f"decoder.blocks.{i}.", x, size.heads, 1e-6, VIDEOMAE_FC)
    return _linear(w, "decoder.head", apply_norm(w, "decoder.norm", x, 1e-6))


def run_videomae_hub(w: Weights, video_BCTHW: Tensor, size: Size) -> Tensor:
    """Tokens before the last norm in the model hub's code, whose epsilon is 1e-12."""
    x = tubelet_tokens(w, "videomae.embeddings.patch_embeddings.projection", video_BCTHW)
    x = x + counting_table(NUM_TOKENS, size.width)
    for i in range(size.depth):
        x = run_hub_block(w, f"videomae.encoder.layer.{i}.", x, size.heads, 1e-12)
    return x


def run_videomae_hub_decoder(w: Weights, tokens_BLD: Tensor, size: Size) -> Tensor:
    """Predictions for all positions in the model hub's code, whose last norm has an epsilon of its own."""
    x = F.linear(tokens_BLD, w["encoder_to_decoder.weight"]) + counting_table(NUM_TOKENS, size.width)
    for i in range(size.depth):
        x = run_hub_block(w, f"decoder.decoder_layers.{i}.", x, size.heads, 1e-12)
    return _linear(w, "decoder.head", apply_norm(w, "decoder.norm", x, 1e-5))


def run_vit(w: Weights, image_BCHW: Tensor, size: Size, *, with_class: bool) -> Tensor:
    """Tokens of an image's patches before the last norm, with or without the class token among them."""
    grid = F.conv2d(image_BCHW, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    x = rearrange(grid, "b d h w -> b (h w) d") + w["pos_embed"][:, 1:]
    if with_class:
        x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    for i in range(size.depth):
        x = run_timm_block(w, f"blocks.{i}.", x, size.heads)
    return x[:, 1:] if with_class else x


# ------------------------------------------------------------------------------------------- into our networks


def imagenet_normalised(rgb_BCTHW: Tensor) -> Tensor:
    """RGB in [0, 1] as our networks and most sources want it."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (rgb_BCTHW - mean) / std


def convert(source: Source, weights: Weights, config: Config) -> Conversion:
    """Converts a table of weights, and checks that no key of either side is without a fate.

    A decoder that the target cannot take is the adaptation's business; all else has to fit.
    """
    conversion = importing.convert(source, weights, "published.pt", config)
    used = {word for text in conversion.made_of.values() for word in re.split("[, ]+", text)}
    assert set(weights) == set(conversion.dropped) | (used & set(weights))
    assert not set(conversion.dropped) & used
    ours = target_shapes(config)
    for name, tensor in conversion.tensors.items():
        if not name.startswith("video_decoder."):
            assert (tuple(tensor.shape), tensor.dtype) == (ours[name], torch.float32), name
    left_out = {name for name in ours if any(f"{name}.".startswith(part) for part in conversion.left_out)}
    assert set(ours) <= left_out | set(conversion.tensors)
    assert not left_out & set(conversion.tensors)
    assert set(conversion.tensors) == set(conversion.made_of) | set(conversion.filled)
    return conversion


def target_shapes(config: Config) -> Shapes:
    """Returns names and shapes of the config's network without its memory."""
    sections = (config.clip, config.model, config.pretrain)
    with torch.device("meta"):
        model = PretrainModel(*sections) if config.stage == "pretrain" else Classifier(*sections, config.finetune)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def decoder_shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Returns names and shapes of the video decoder's parameters, without its head."""
    names = (name for name in tensors if name.startswith("video_decoder.") and "head" not in name)
    return {name: tuple(tensors[name].shape) for name in names}


def loaded(config: Config, conversion: Conversion, part: str) -> nn.Module:
    """Returns `video_encoder` or `video_decoder` of the config's network with the converted weights in it.

    What the conversion leaves out keeps its start.
    """
    module = getattr(build_model(config).eval(), part)
    own = {
        name.removeprefix(f"{part}."): tensor
        for name, tensor in conversion.tensors.items()
        if name.startswith(f"{part}.")
    }
    start = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if any(f"{part}.{name}".startswith(left_out) for left_out in conversion.left_out)
    }
    module.load_state_dict({**start, **own})
    return module


def our_tokens(encoder: nn.Module, config: Config, video_BCTHW: Tensor) -> Tensor:
    """(B, L, D) tokens of all patches from ImageNet-normalised frames."""
    patches_BLP = patchify_video(rearrange(video_BCTHW, "b c t h w -> b t c h w"), config.model)
    return encoder(patches_BLP, torch.zeros(len(video_BCTHW), dtype=torch.int64)).flatten(1, 2)
