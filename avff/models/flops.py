"""Work, tokens, parameters and memory of a config, computed from shapes alone.

Counts 2 per multiply-add and leaves out norms and softmax. The backward pass counts the gradients that training needs:
of a layer's weights, as much as its forward pass, where they learn; of its input, as much again, where something before
it learns (a product of two activations: both, twice its forward pass). Frozen parts before everything that learns have
none. Work that is done twice to save memory is not counted.
"""

from typing import NamedTuple

import torch
from torch import nn

from avff.config import ActivationCheckpointing, Config, TransformerSize
from avff.models.build import build_critics, build_model
from avff.models.classifier import NUM_AGREEMENTS
from avff.models.freeze import frozen_names
from avff.models.patches import TokenGrid, audio_grid, video_grid
from avff.models.transformer import MLP_RATIO

ACTIVATION_BYTES_PER_VALUE: dict[ActivationCheckpointing, int] = {"none": 36, "cheap": 24, "blocks": 4}
"""Kept for the backward pass per token and channel of a block, in bf16 with fused attention and an fp32 residual:

4 + 4 the inputs of both norms, 6 queries, keys and values, 2 the mixed values, 8 what GELU reads; `none` also 2 + 2 the
cast norms and 8 what GELU gives; `blocks` only the block's input. tests/models/test_transformer.py measures them.
"""


def linear_flops(tokens: int, width_in: int, width_out: int) -> int:
    return 2 * tokens * width_in * width_out


def attention_flops(tokens: int, width: int) -> int:
    """The two products of activations in attention over one sequence."""
    return 4 * tokens**2 * width


def block_flops(tokens: int, width: int) -> int:
    """One block over one sequence: four attention matrices, two MLP matrices, and the two attention products."""
    return (8 + 4 * MLP_RATIO) * tokens * width**2 + attention_flops(tokens, width)


class Work(NamedTuple):
    """FLOP of one part of the network for one clip."""

    forward: int
    backward: int


def work(config: Config) -> dict[str, Work]:
    """Returns what each part of the network does for one clip in training; critics are not in it."""
    clip, model = config.clip, config.model
    video, audio = video_grid(clip, model), audio_grid(clip, model)
    pretraining = config.stage == "pretrain"
    half = clip.num_slices // 2
    shown = 2 if pretraining and config.pretrain.mask_input else 1
    slices = half if pretraining else clip.num_slices
    width, decoder = model.encoder.width, model.decoder.width

    def cross_modal(tokens_in: int, tokens_out: int) -> Work:
        token_map = slices * linear_flops(width, tokens_in, tokens_out)
        forward = token_map + slices * block_flops(tokens_out, width)
        return Work(forward, 2 * forward - (0 if _encoders_learn(config) else token_map))

    parts: dict[str, Work] = {}
    for name, grid in (("video", video), ("audio", audio)):
        parts[f"{name}_encoder"] = _encoder_work(config, grid, grid.num_tokens // shown)
    parts["a2v"] = cross_modal(audio.tokens_per_slice, video.tokens_per_slice)
    parts["v2a"] = cross_modal(video.tokens_per_slice, audio.tokens_per_slice)
    for name, grid in (("video", video), ("audio", audio)):
        if pretraining:
            outer = linear_flops(grid.num_tokens, width, decoder)
            outer += linear_flops(half * grid.tokens_per_slice, decoder, grid.patch_values)
            parts[f"{name}_decoder"] = _learning(outer + model.decoder.depth * block_flops(grid.num_tokens, decoder))
        else:
            pool = linear_flops(grid.num_tokens, 2 * width, decoder)
            # Attention weights and weighted sums: one query per head, all channels once.
            pool += linear_flops(grid.num_tokens, decoder, model.decoder.heads) + linear_flops(
                grid.num_tokens, 1, decoder
            )
            parts[f"{name}_pool"] = _learning(pool)
    if not pretraining:
        overall = 2 * decoder + NUM_AGREEMENTS * clip.num_slices
        parts["heads"] = _learning(linear_flops(1, 2 * decoder + overall, decoder) + 3 * linear_flops(1, decoder, 1))
    return parts


def _learning(forward: int) -> Work:
    """Of a part whose weights learn, after others that do."""
    return Work(forward, 2 * forward)


def _encoders_learn(config: Config) -> bool:
    return config.finetune.encoders != "freeze" or config.finetune.trained_blocks > 0


def _encoder_work(config: Config, grid: TokenGrid, tokens: int) -> Work:
    """Of one encoder whose blocks see `tokens`; of what learns first, the input needs no gradient."""
    finetune, width, depth = config.finetune, config.model.encoder.width, config.model.encoder.depth
    embed, block = linear_flops(grid.num_tokens, grid.patch_values, width), block_flops(tokens, width)
    forward = embed + depth * block
    if finetune.encoders == "train":
        return Work(forward, 2 * forward - embed)
    if finetune.encoders == "freeze":
        return Work(forward, 2 * finetune.trained_blocks * block)  # a norm comes first, whose weights learn
    down, to_qkv = linear_flops(tokens, width, finetune.lora_rank), linear_flops(tokens, width, 3 * width)
    change = 2 * down + linear_flops(tokens, finetune.lora_rank, (3 + 1) * width)  # of qkv and of proj
    backward = depth * (block + attention_flops(tokens, width) + 2 * change) - to_qkv - down
    return Work(forward + depth * change, backward)


def forward_gflops(config: Config) -> dict[str, float]:
    """Returns GFLOP of one clip's forward pass in training, per part of the model; critics are not in it."""
    return {name: part.forward / 1e9 for name, part in work(config).items()}


def training_gflops(config: Config) -> float:
    """Returns GFLOP of one clip's forward and backward pass: what MFU is measured against."""
    return sum(part.forward + part.backward for part in work(config).values()) / 1e9


def critic_gflops(config: Config) -> float:
    """Returns GFLOP of both critics scoring one clip's hidden patches once; 0 without critics."""
    if config.stage != "pretrain" or config.pretrain.adversarial_weight == 0:
        return 0.0
    grids = (video_grid(config.clip, config.model), audio_grid(config.clip, config.model))
    width = config.model.critic_width
    return sum(linear_flops(grid.num_tokens // 2, grid.patch_values + 1, width) for grid in grids) / 1e9


def activation_megabytes(config: Config) -> float:
    """Estimates what one clip's forward pass keeps in bf16, by `model.activation_checkpointing`.

    With `blocks`, one block at a time is kept whole while the backward pass runs it again. With LoRA it is too much by
    what frozen matrices need not keep of their inputs; compiled blocks keep about as much as `cheap` whatever is set.
    """
    clip, model = config.clip, config.model
    video, audio = video_grid(clip, model).num_tokens, audio_grid(clip, model).num_tokens
    pretraining, frozen = config.stage == "pretrain", config.finetune.encoders == "freeze"
    share = 0.5 if pretraining and config.pretrain.mask_input else 1.0
    depth = config.finetune.trained_blocks if frozen else model.encoder.depth
    stacks = share * (video + audio) * model.encoder.width * depth
    if pretraining:
        stacks += (video + audio) * model.decoder.width * model.decoder.depth
    # A2V and V2A are one block each, which `blocks` does not run again.
    cross_modal = (0.5 if pretraining else 1.0) * (video + audio) * model.encoder.width
    policy, bytes_each = model.activation_checkpointing, ACTIVATION_BYTES_PER_VALUE
    once = bytes_each["none"] * share * video * model.encoder.width if policy == "blocks" else 0.0
    return (bytes_each[policy] * stacks + bytes_each["none"] * cross_modal + once) / 1e6


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Returns trainable parameters per top-level part."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}


def frozen_counts(module: nn.Module) -> dict[str, int]:
    """Returns the values per top-level part that do not learn."""
    return {name: _num_frozen(part) for name, part in module.named_children()}


def _num_frozen(module: nn.Module) -> int:
    state = module.state_dict()
    return sum(state[name].numel() for name in frozen_names(module))


def describe(config: Config) -> str:
    """Returns a table of the config's model: tokens, parameters, work per clip, memory; builds nothing real."""
    has_critics = critic_gflops(config) > 0
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
            *_part_rows(config, has_critics),
            "",
            f"forward and backward: {training_gflops(config):,.1f} GFLOP per clip{' (critics not counted)' * has_critics}",
            f"activations: about {activation_megabytes(config):,.0f} MB per clip in bf16 with "
            f"model.activation_checkpointing={config.model.activation_checkpointing}",
        ]
    )


def _part_rows(config: Config, has_critics: bool) -> list[str]:
    """One line per part; a column says what is frozen where something is."""
    with torch.device("meta"):
        model, critics = build_model(config), build_critics(config)
    trained, frozen, gflops = parameter_counts(model), frozen_counts(model), forward_gflops(config)
    rows = [(name, count, frozen[name], gflops.get(name, 0.0)) for name, count in trained.items()]
    rows.append(("model", sum(trained.values()), sum(frozen.values()), sum(gflops.values())))
    if has_critics:
        rows.append(("critics", sum(parameter_counts(critics).values()), 0, critic_gflops(config)))
    if not any(frozen.values()):
        head = f"{'part':<16}{'parameters':>14}{'forward GFLOP':>16}"
        return [head, *(f"{name:<16}{count:>14,}{gflop:>16.2f}" for name, count, _, gflop in rows)]
    head = f"{'part':<16}{'trained':>14}{'frozen':>14}{'forward GFLOP':>16}"
    return [head, *(f"{name:<16}{count:>14,}{fixed:>14,}{gflop:>16.2f}" for name, count, fixed, gflop in rows)]


def _size(size: TransformerSize) -> str:
    return f"{size.depth} x {size.width}, {size.heads} heads"


def _grid(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
