"""AudioMAE, CAV-MAE and HAVIC as plain functions of a table of weights: their layouts and what they compute.

A layout is the published key names and their shapes; `seeded` fills one with random numbers. The forward passes read
the table by those names, take the source's own input and return its tokens in the source's own order.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = dict[str, tuple[int, ...]]
Weights = Mapping[str, Tensor]

HEADS = {96: 3, 768: 12}
SWIN_BLOCKS = 16
SEGMENTS = 8


def seeded(layout: Layout, seed: int) -> dict[str, Tensor]:
    """Random weights of the size that training leaves: no bias zero, no norm one, activations neither dying nor growing."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in layout.items():
        noise = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            weights[name] = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise
        elif name.endswith(".weight"):
            weights[name] = noise / math.sqrt(math.prod(shape[1:]))
        else:
            weights[name] = 0.3 * noise
    return weights


def num_parameters(layout: Layout) -> int:
    return sum(math.prod(shape) for shape in layout.values())


# ------------------------------------------------------------------------------------------- what all are made of


def layer(name: str, out: int, given: int) -> Layout:
    return {f"{name}.weight": (out, given), f"{name}.bias": (out,)}


def norms(prefix: str, width: int, *names: str) -> Layout:
    return {f"{prefix}{name}.{kind}": (width,) for name in names for kind in ("weight", "bias")}


def block_layout(prefix: str, width: int, norm_names: tuple[str, ...] = ("norm1", "norm2")) -> Layout:
    return {
        **norms(prefix, width, *norm_names),
        **layer(f"{prefix}attn.qkv", 3 * width, width),
        **layer(f"{prefix}attn.proj", width, width),
        **layer(f"{prefix}mlp.fc1", 4 * width, width),
        **layer(f"{prefix}mlp.fc2", width, 4 * width),
    }


def split_bias_block_layout(prefix: str, width: int, fc1: str, fc2: str) -> Layout:
    """A block whose attention has a bias for q and one for v, and none for k."""
    layout = block_layout(prefix, width)
    del layout[f"{prefix}attn.qkv.bias"]
    layout |= {f"{prefix}attn.q_bias": (width,), f"{prefix}attn.v_bias": (width,)}
    renamed = {f"{prefix}mlp.fc1": f"{prefix}{fc1}", f"{prefix}mlp.fc2": f"{prefix}{fc2}"}
    for old, new in renamed.items():
        for kind in ("weight", "bias"):
            layout[f"{new}.{kind}"] = layout.pop(f"{old}.{kind}")
    return layout


def norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attend(weights: Weights, prefix: str, x_BLD: Tensor) -> Tensor:
    """Softmax attention written out, with whichever form of bias the table holds."""
    batch, length, width = x_BLD.shape
    if f"{prefix}q_bias" in weights:
        q_bias, v_bias = weights[f"{prefix}q_bias"], weights[f"{prefix}v_bias"]
        bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
    else:
        bias = weights[f"{prefix}qkv.bias"]
    qkv = F.linear(x_BLD, weights[f"{prefix}qkv.weight"], bias)
    heads = HEADS[width]
    q, k, v = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    share = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(dim=-1)
    return linear(weights, f"{prefix}proj", (share @ v).transpose(1, 2).reshape(batch, length, width))


def run_block(
    weights: Weights,
    prefix: str,
    x_BLD: Tensor,
    eps: float,
    *,
    norm1: str = "norm1",
    norm2: str = "norm2",
    fc1: str = "mlp.fc1",
    fc2: str = "mlp.fc2",
) -> Tensor:
    x_BLD = x_BLD + attend(weights, f"{prefix}attn.", norm(weights, f"{prefix}{norm1}", x_BLD, eps))
    hidden = F.gelu(linear(weights, f"{prefix}{fc1}", norm(weights, f"{prefix}{norm2}", x_BLD, eps)))
    return x_BLD + linear(weights, f"{prefix}{fc2}", hidden)


def patches_2d(weights: Weights, name: str, image_BCHW: Tensor) -> Tensor:
    """(B, L, D) tokens of a convolution without overlap, rows of the image one after another."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.conv2d(image_BCHW, kernel, bias, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)


# ------------------------------------------------------------------------------------------- AudioMAE


AUDIOMAE_EPS = 1e-6


def audiomae_encoder_layout(width: int = 768, depth: int = 12, num_tokens: int = 512) -> Layout:
    layout: Layout = {"cls_token": (1, 1, width), "pos_embed": (1, num_tokens + 1, width)}
    layout |= {"patch_embed.proj.weight": (width, 1, 16, 16), "patch_embed.proj.bias": (width,)}
    for n in range(depth):
        layout |= block_layout(f"blocks.{n}.", width)
    return layout


def audiomae_layout(width: int = 768, depth: int = 12, num_tokens: int = 512) -> Layout:
    """The pretraining file's `model`, with the decoder of 16 windowed blocks 512 wide."""
    layout = audiomae_encoder_layout(width, depth, num_tokens) | norms("", width, "norm")
    layout |= {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, num_tokens + 1, 512)}
    layout |= layer("decoder_embed", 512, width)
    for n in range(SWIN_BLOCKS):
        prefix = f"decoder_blocks.{n}."
        layout |= block_layout(prefix, 512)
        layout |= {f"{prefix}attn.tau": (16,)}
        layout |= layer(f"{prefix}attn.meta_mlp.fc1", 384, 2) | layer(f"{prefix}attn.meta_mlp.fc2", 16, 384)
    return layout | norms("", 512, "decoder_norm") | layer("decoder_pred", 256, 512)


def audiomae_finetuned_layout(width: int = 768, depth: int = 12, num_tokens: int = 512) -> Layout:
    """The finetuned file's `model`: no decoder, the norm behind the mean, a head over 527 sound events."""
    encoder = audiomae_encoder_layout(width, depth, num_tokens)
    return encoder | norms("", width, "fc_norm") | layer("head", 527, width)


def audiomae_tokens(weights: Weights, mel_BMF: Tensor, *, class_token: bool = True) -> Tensor:
    """(B, L, D) tokens after the last block, without the class token; input normalised, (time, mel)."""
    x = patches_2d(weights, "patch_embed.proj", mel_BMF.unsqueeze(1))
    x = x + weights["pos_embed"][:, 1 : 1 + x.shape[1]]
    first = (weights["cls_token"] + weights["pos_embed"][:, :1]).expand(len(x), -1, -1)
    if class_token:
        x = torch.cat([first, x], dim=1)
    for n in range(len({name.split(".")[1] for name in weights if name.startswith("blocks.")})):
        x = run_block(weights, f"blocks.{n}.", x, AUDIOMAE_EPS)
    return x[:, 1:] if class_token else x


# ------------------------------------------------------------------------------------------- CAV-MAE


CAV_MAE_EPS = 1e-5
CAV_MAE_NORMS = ("norm1", "norm1_a", "norm1_v", "norm2", "norm2_a", "norm2_v")


def cav_mae_encoder_layout(width: int, own: int, num_audio: int, num_video: int) -> Layout:
    layout: Layout = {f"modality_{m}": (1, 1, width) for m in "av"}
    layout |= {"pos_embed_a": (1, num_audio, width), "pos_embed_v": (1, num_video, width)}
    for letter, colours in (("a", 1), ("v", 3)):
        layout |= {f"patch_embed_{letter}.proj.weight": (width, colours, 16, 16)}
        layout |= {f"patch_embed_{letter}.proj.bias": (width,)}
    for blocks, depth in (("blocks_a", own), ("blocks_v", own), ("blocks_u", 1)):
        for n in range(depth):
            layout |= block_layout(f"{blocks}.{n}.", width, CAV_MAE_NORMS)
    return layout | norms("", width, "norm_a", "norm_v", "norm")


def cav_mae_layout(width: int = 768, own: int = 11, num_audio: int = 512, num_video: int = 196) -> Layout:
    """The pretraining file: encoder, and a decoder of 8 blocks 512 wide for both modalities."""
    layout = cav_mae_encoder_layout(width, own, num_audio, num_video) | {"mask_token": (1, 1, 512)}
    layout |= {f"decoder_modality_{m}": (1, 1, 512) for m in "av"}
    layout |= {"decoder_pos_embed_a": (1, num_audio, 512), "decoder_pos_embed_v": (1, num_video, 512)}
    layout |= layer("decoder_embed", 512, width)
    for n in range(8):
        layout |= block_layout(f"decoder_blocks.{n}.", 512, CAV_MAE_NORMS)
    layout |= norms("", 512, "decoder_norm")
    return layout | layer("decoder_pred_a", 256, 512) | layer("decoder_pred_v", 768, 512)


def cav_mae_finetuned_layout(
    width: int = 768, own: int = 11, num_audio: int = 512, num_video: int = 196, classes: int = 527
) -> Layout:
    layout = cav_mae_encoder_layout(width, own, num_audio, num_video)
    return layout | norms("", width, "mlp_head.0") | layer("mlp_head.1", classes, width)


def cav_mae_tokens(weights: Weights, letter: str, image_BCHW: Tensor) -> Tensor:
    """(B, L, D) tokens of one modality: (B, 1, mel, time) of sound ("a"), or (B, 3, H, W) of a picture ("v")."""
    x = patches_2d(weights, f"patch_embed_{letter}.proj", image_BCHW)
    x = x + weights[f"pos_embed_{letter}"] + weights[f"modality_{letter}"]
    for n in range(len({name.split(".")[1] for name in weights if name.startswith(f"blocks_{letter}.")})):
        x = run_block(weights, f"blocks_{letter}.{n}.", x, CAV_MAE_EPS)
    x = run_block(weights, "blocks_u.0.", x, CAV_MAE_EPS, norm1=f"norm1_{letter}", norm2=f"norm2_{letter}")
    return norm(weights, f"norm_{letter}", x, CAV_MAE_EPS)


# ------------------------------------------------------------------------------------------- HAVIC


HAVIC_EPS = 1e-5
MARLIN_MLP = {"fc1": "mlp.layers.0.linear", "fc2": "mlp.layers.1.linear"}


def havic_encoders_layout(width: int, depth: int, num_audio: int, num_video: int, class_position: str) -> Layout:
    layout: Layout = {}
    for modality in ("audio", "visual"):
        layout |= {f"{modality}_encoder.{name}": (1, SEGMENTS, width) for name in ("cls_tokens", class_position)}
        layout |= norms(f"{modality}_encoder.", width, "norm")
    layout |= {"audio_encoder.pos_embed": (1, num_audio, width), "audio_encoder.modality": (1, 1, width)}
    layout |= {"audio_encoder.patch_embed.proj.weight": (width, 1, 16, 16)}
    layout |= {"audio_encoder.patch_embed.proj.bias": (width,)}
    layout |= {"visual_encoder.patch_embedding.projection.weight": (width, 3, 2, 16, 16)}
    layout |= {"visual_encoder.patch_embedding.projection.bias": (width,)}
    layout |= {"visual_encoder.pos_embedding.emb": (1, num_video, width)}
    for n in range(depth):
        layout |= split_bias_block_layout(f"audio_encoder.blocks.{n}.", width, "mlp.fc1", "mlp.fc2")
        layout |= split_bias_block_layout(f"visual_encoder.blocks.{n}.", width, *MARLIN_MLP.values())
    return layout


def _interaction_layout(width: int) -> Layout:
    prefix = "AudioVisualInteractionModule."
    layout: Layout = {f"{prefix}{name}": (1, 1, width) for name in ("audio_mask_token", "audio_modality")}
    layout |= {f"{prefix}visual_mask_token": (1, 1, width), f"{prefix}audio_pos_embed": (1, 512, width)}
    layout |= {f"{prefix}visual_pos_embedding.emb": (1, 1568, width)}
    layout |= norms(prefix, width, "norm_video_out", "norm_audio_out")
    block = f"{prefix}blocks.0."
    for name in ("self_attn_video", "self_attn_audio"):
        layout |= block_layout(f"{block}{name}.", width)
    for name in ("cross_attn_audio_to_video", "cross_attn_video_to_audio"):
        cross = f"{block}{name}."
        layout |= norms(cross, width, "norm_q", "norm_k", "norm2")
        for part in ("q_proj", "k_proj", "v_proj", "proj"):
            layout |= layer(f"{cross}{part}", width, width)
        layout |= layer(f"{cross}mlp.fc1", 4 * width, width) | layer(f"{cross}mlp.fc2", width, 4 * width)
    return layout


def _havic_decoder_layout(prefix: str, width: int, mlp: tuple[str, str], entry: str, head: str, values: int) -> Layout:
    layout: Layout = {f"{prefix}mask_token": (1, 1, 384), f"{prefix}{entry}.weight": (384, width)}
    for n in range(4):
        layout |= split_bias_block_layout(f"{prefix}blocks.{n}.", 384, *mlp)
        layout |= layer(f"{prefix}{head}{f'_{n}' if n else ''}", values, 384)
        fusion = f"{prefix}HiA_{3 * (n + 1)}."
        layout |= layer(f"{fusion}encoder2decoder", 384, width) | norms(fusion, 384, "norm_q", "norm_k", "out_norm")
        for part in ("query_proj", "key_proj", "value_proj"):
            layout |= layer(f"{fusion}{part}", 384, 384)
    return layout


def havic_layout(
    width: int = 768,
    depth: int = 12,
    num_audio: int = 512,
    num_video: int = 1568,
    class_position: str = "cls_pos_embed",
) -> Layout:
    """The pretraining file: encoders, decoders, interaction and both cross-modal decoders."""
    layout = havic_encoders_layout(width, depth, num_audio, num_video, class_position) | _interaction_layout(width)
    audio, visual = "audio_decoder.", "visual_decoder."
    layout |= _havic_decoder_layout(audio, width, ("mlp.fc1", "mlp.fc2"), "decoder_embed", "decoder_pred", 256)
    layout |= {f"{audio}decoder_modality": (1, 1, 384), f"{audio}decoder_pos_embed": (1, num_audio, 384)}
    layout |= norms(audio, 384, "decoder_norm")
    layout |= _havic_decoder_layout(visual, width, tuple(MARLIN_MLP.values()), "enc_dec_proj", "head", 1536)
    layout |= {f"{visual}pos_embedding.emb": (1, num_video, 384)} | norms(visual, 384, "norm")
    for name, out, given in (("A2V", 196, 64), ("V2A", 64, 196)):
        layout |= layer(f"{name}.TokenAligner.output_layer", out, given)
        layout |= block_layout(f"{name}.block.", width) | norms(f"{name}.", width, "norm")
    layout |= {"A2V.audio_mask_token": (1, 1, width), "A2V.audio_modality": (1, 1, width)}
    layout |= {"A2V.audio_pos_embed": (1, 512, width), "V2A.visual_mask_token": (1, 1, width)}
    return layout | {"V2A.visual_pos_embedding.emb": (1, 1568, width)}


def havic_finetuned_layout(
    width: int = 768,
    depth: int = 12,
    num_audio: int = 512,
    num_video: int = 1568,
    class_position: str = "cls_pos_embed",
) -> Layout:
    """The finetuned file: encoders, interaction, token reducers and three heads."""
    layout = havic_encoders_layout(width, depth, num_audio, num_video, class_position) | _interaction_layout(width)
    for modality in ("Audio", "Visual"):
        for level in ("3", "6", "9", "12", "AVI"):
            reducer = f"{modality}TokenReducer_{level}.mlp."
            layout |= layer(f"{reducer}0", 128, width) | layer(f"{reducer}2", 1, 128)
    for head, given in (("classifier", 4 * width), ("classifier_audio", width), ("classifier_visual", width)):
        layout |= layer(f"{head}.layers.0", 2 * width, given) | layer(f"{head}.layers.1", width, 2 * width)
        layout |= layer(f"{head}.output_layer", 1, width)
    return layout | {"pool_a.weights": (4,), "pool_v.weights": (4,)}


def _with_class_tokens(x_BLD: Tensor, class_1SD: Tensor) -> Tensor:
    """One class token before each eighth of the tokens."""
    parts_BSLD = x_BLD.unflatten(1, (SEGMENTS, -1))
    return torch.cat([class_1SD.expand(len(x_BLD), -1, -1).unsqueeze(2), parts_BSLD], dim=2).flatten(1, 2)


def _havic_blocks(weights: Weights, prefix: str, x: Tensor, mlp: dict[str, str], class_1SD: Tensor | None) -> Tensor:
    if class_1SD is not None:
        x = _with_class_tokens(x, class_1SD)
    for n in range(len({name.split(".")[2] for name in weights if name.startswith(f"{prefix}blocks.")})):
        x = run_block(weights, f"{prefix}blocks.{n}.", x, HAVIC_EPS, **mlp)
    x = norm(weights, f"{prefix}norm", x, HAVIC_EPS)
    return x if class_1SD is None else x.unflatten(1, (SEGMENTS, -1))[:, :, 1:].flatten(1, 2)


def havic_audio_tokens(weights: Weights, mel_BMF: Tensor, *, class_tokens: bool = True) -> Tensor:
    """(B, L, D) of normalised (time, mel) input, mel rows one after another; class tokens enter without position."""
    prefix = "audio_encoder."
    x = patches_2d(weights, f"{prefix}patch_embed.proj", mel_BMF.transpose(1, 2).unsqueeze(1))
    x = x + weights[f"{prefix}pos_embed"] + weights[f"{prefix}modality"]
    return _havic_blocks(weights, prefix, x, {}, weights[f"{prefix}cls_tokens"] if class_tokens else None)


def havic_video_tokens(weights: Weights, video_BCTHW: Tensor, *, class_tokens: bool = True) -> Tensor:
    """(B, L, D) of RGB in [0, 1], ordered (time, height, width)."""
    prefix = "visual_encoder."
    kernel = weights[f"{prefix}patch_embedding.projection.weight"]
    x = F.conv3d(video_BCTHW, kernel, weights[f"{prefix}patch_embedding.projection.bias"], stride=kernel.shape[2:])
    x = x.flatten(2).transpose(1, 2) + weights[f"{prefix}pos_embedding.emb"]
    position = next(name for name in ("cls_pos_embed", "time_pos_embed") if f"{prefix}{name}" in weights)
    classes = weights[f"{prefix}cls_tokens"] + weights[f"{prefix}{position}"]
    return _havic_blocks(weights, prefix, x, MARLIN_MLP, classes if class_tokens else None)
