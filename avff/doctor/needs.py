"""What a config will take of a machine, from its numbers alone."""

from avff.config import Config

FP32_BYTES = 4
KEPT_BESIDES = 2
"""Checkpoints on the disk besides `engine.keep_checkpoints`: the best by validation, and the one being written."""


def bytes_in_words(num_bytes: float) -> str:
    """Returns `3.1 GB`, `24 MB` or `4 kB`."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


def clip_bytes(config: Config) -> int:
    """Returns what one clip takes on its way from a loader process: uint8 frames and float32 sound."""
    clip = config.clip
    return 3 * clip.num_frames * clip.load_size**2 + FP32_BYTES * clip.num_samples


def read_ahead_bytes(config: Config, world_size: int) -> int:
    """Returns what the loader processes of one rank hold: steps that are ready, and the one that each puts together."""
    clips_per_rank = config.engine.global_batch_size // world_size
    return config.data.num_workers * (config.data.prefetch_steps + 1) * clips_per_rank * clip_bytes(config)


def parameter_counts(config: Config) -> tuple[int, int, int]:
    """Returns what learns of the model, the critics' parameters, and what of the model is frozen; nothing is allocated."""
    import torch

    from avff.models.build import build_critics, build_model
    from avff.models.flops import frozen_counts

    with torch.device("meta"):
        model = build_model(config)
        critics = build_critics(config) if config.stage == "pretrain" and config.pretrain.adversarial_weight else None
    counts = [sum(p.numel() for p in module.parameters()) if module else 0 for module in (model, critics)]
    return counts[0], counts[1], sum(frozen_counts(model).values())


def gradient_bytes(config: Config) -> int:
    """Returns what all ranks add up in every step."""
    return sum(parameter_counts(config)[:2]) * (2 if config.engine.precision == "bf16" else FP32_BYTES)


def checkpoint_bytes(config: Config) -> int:
    """Returns the size of one checkpoint, which holds fp32 numbers alone.

    Ranks save weights, two moments and the moving average of all parameters; the model comes once more consolidated,
    frozen parts included: weights, and their average where there is one.
    """
    model, critics, frozen = parameter_counts(config)
    return FP32_BYTES * (4 * (model + critics) + (model + frozen) * (2 if config.optim.ema_decay else 1))


def run_bytes(config: Config) -> int:
    """Returns what a whole run keeps on the disk, checkpoints that are kept for good aside."""
    return checkpoint_bytes(config) * (config.engine.keep_checkpoints + KEPT_BESIDES)
