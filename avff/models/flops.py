"""Work, tokens, parameters and memory of a config, computed from shapes alone (AVFF-SPEC §6).

Counts 2 per multiply-add, leaves out norms and softmax, and takes the backward pass as twice the forward pass.
"""

import torch
from torch import nn

from avff.config import Config, TransformerSize
from avff.models.build import build_critics, build_model
from avff.models.classifier import NUM_AGREEMENTS
from avff.models.patches import audio_grid, video_grid
from avff.models.transformer import MLP_RATIO

ACTIVATION_BYTES_PER_VALUE = 34
"""Kept for the backward pass per token and channel of a block, in bf16 with fused attention (AVFF-SPEC §3.6)."""


def linear_flops(tokens: int, width_in: int, width_out: int) -> int:
    return 2 * tokens * width_in * width_out


def block_flops(tokens: int, width: int) -> int:
    """One block over one sequence: four attention matrices, two MLP matrices, and the two attention products."""
    return (8 + 4 * MLP_RATIO) * tokens * width**2 + 4 * tokens**2 * width


def forward_gflops(config: Config) -> dict[str, float]:
    """Returns GFLOP of one clip's forward pass in training, per part of the model; critics are not in it."""
    clip, model = config.clip, config.model
    video, audio = video_grid(clip, model), audio_grid(clip, model)
    pretraining = config.stage == "pretrain"
    half = clip.num_slices // 2
    shown = 2 if pretraining and config.pretrain.mask_input else 1
    slices = half if pretraining else clip.num_slices
    width, decoder = model.encoder.width, model.decoder.width

    def cross_modal(tokens_in: int, tokens_out: int) -> int:
        return slices * (linear_flops(width, tokens_in, tokens_out) + block_flops(tokens_out, width))

    flops: dict[str, int] = {}
    for name, grid in (("video", video), ("audio", audio)):
        embed = linear_flops(grid.num_tokens, grid.patch_values, width)
        flops[f"{name}_encoder"] = embed + model.encoder.depth * block_flops(grid.num_tokens // shown, width)
    flops["a2v"] = cross_modal(audio.tokens_per_slice, video.tokens_per_slice)
    flops["v2a"] = cross_modal(video.tokens_per_slice, audio.tokens_per_slice)
    for name, grid in (("video", video), ("audio", audio)):
        if pretraining:
            outer = linear_flops(grid.num_tokens, width, decoder)
            outer += linear_flops(half * grid.tokens_per_slice, decoder, grid.patch_values)
            flops[f"{name}_decoder"] = outer + model.decoder.depth * block_flops(grid.num_tokens, decoder)
        else:
            pool = linear_flops(grid.num_tokens, 2 * width, decoder)
            # Attention weights and weighted sums: one query per head, all channels once.
            pool += linear_flops(grid.num_tokens, decoder, model.decoder.heads) + linear_flops(
                grid.num_tokens, 1, decoder
            )
            flops[f"{name}_pool"] = pool
    if not pretraining:
        overall = 2 * decoder + NUM_AGREEMENTS * clip.num_slices
        flops["heads"] = linear_flops(1, 2 * decoder + overall, decoder) + 3 * linear_flops(1, decoder, 1)
    return {name: value / 1e9 for name, value in flops.items()}


def training_gflops(config: Config) -> float:
    """Returns GFLOP of one clip's forward and backward pass: what MFU is measured against."""
    return 3 * sum(forward_gflops(config).values())


def critic_gflops(config: Config) -> float:
    """Returns GFLOP of both critics scoring one clip's hidden patches once; 0 without critics."""
    if config.stage != "pretrain" or config.pretrain.adversarial_weight == 0:
        return 0.0
    grids = (video_grid(config.clip, config.model), audio_grid(config.clip, config.model))
    width = config.model.critic_width
    return sum(linear_flops(grid.num_tokens // 2, grid.patch_values + 1, width) for grid in grids) / 1e9


def activation_megabytes(config: Config) -> float:
    """Estimates what one clip's forward pass keeps in bf16; a sixth or so with activation checkpointing."""
    clip, model = config.clip, config.model
    video, audio = video_grid(clip, model).num_tokens, audio_grid(clip, model).num_tokens
    pretraining = config.stage == "pretrain"
    share = 0.5 if pretraining and config.pretrain.mask_input else 1.0
    values = share * (video + audio) * model.encoder.width * model.encoder.depth
    values += (0.5 if pretraining else 1.0) * (video + audio) * model.encoder.width
    if pretraining:
        values += (video + audio) * model.decoder.width * model.decoder.depth
    return ACTIVATION_BYTES_PER_VALUE * values / 1e6


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Returns trainable parameters per top-level part."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}


def describe(config: Config) -> str:
    """Returns a table of the config's model: tokens, parameters, work per clip, memory; builds nothing real."""
    with torch.device("meta"):
        model, critics = build_model(config), build_critics(config)
    counts, gflops = parameter_counts(model), forward_gflops(config)
    rows = [f"{'part':<16}{'parameters':>14}{'forward GFLOP':>16}"]
    rows += [f"{name:<16}{count:>14,}{gflops.get(name, 0.0):>16.2f}" for name, count in counts.items()]
    rows.append(f"{'model':<16}{sum(counts.values()):>14,}{sum(gflops.values()):>16.2f}")
    has_critics = critic_gflops(config) > 0
    if has_critics:
        rows.append(f"{'critics':<16}{sum(parameter_counts(critics).values()):>14,}{critic_gflops(config):>16.2f}")
    video, audio = video_grid(config.clip, config.model), audio_grid(config.clip, config.model)
    clip = config.clip
    return "\n".join(
        [
            f"{config.name}: stage {config.stage}, size {config.model.size} "
            f"(encoders {_size(config.model.encoder)}, decoders {_size(config.model.decoder)})",
            f"clip: {clip.num_frames} frames of {clip.image_size} px in {clip.duration_seconds:g} s, "
            f"{clip.num_mel_frames} x {clip.num_mel_bins} log-mel",
            f"tokens: {video.num_tokens} video {_grid(video.shape)}, {audio.num_tokens} audio {_grid(audio.shape)}; "
            f"{video.tokens_per_slice} + {audio.tokens_per_slice} in each of {clip.num_slices} slices",
            "",
            *rows,
            "",
            f"forward and backward: {training_gflops(config):,.1f} GFLOP per clip{' (critics not counted)' * has_critics}",
            f"activations: about {activation_megabytes(config):,.0f} MB per clip in bf16 without checkpointing",
        ]
    )


def _size(size: TransformerSize) -> str:
    return f"{size.depth} x {size.width}, {size.heads} heads"


def _grid(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
