"""Bytes that one rank holds under each ZeRO stage; what is exact is compared with real runs by avff.simulation.check.

Exact: the state, which are tensors that DeepSpeed and the optimizer keep between updates, and the gradients when an
update steps. Estimates: activations (avff.models.flops) and what a process needs besides tensors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from avff.config import Config
from avff.engine.deepspeed_config import BUCKET_ELEMENTS
from avff.models.flops import activation_megabytes
from avff.simulation.contrast import contrast_pairs
from avff.simulation.parameters import Sizes
from avff.simulation.traffic import FP32_BYTES, LIVE_ELEMENTS, PERSISTENT_ELEMENTS

MOMENTS = 2
SIMILARITY_COPIES = 3
"""Of the similarities: logits, log-softmax, a gradient."""
GATHERED_COPIES = 4
"""Of all ranks' embeddings: as gathered, by groups, and the gradients of both."""
RESERVED_BYTES = 2e9
"""Assumed: CUDA's context, kernels, and the allocator's gaps."""


class Memory(NamedTuple):
    """Bytes of one rank.

    Attributes:
        weights: that the forward pass reads, and frozen values.
        masters: fp32 weights of the optimizer, where they are not the former.
        moments: of Adam.
        ema: the moving average.
        gradients: at the end of an update's last backward pass, before they are reduced.
        reduced: what is left of them until the step.
        buckets: buffers for gradients on their way, at the worst moment.
        gathered: ZeRO-3's weights of other ranks, at the worst moment.
        contrast: all ranks' embeddings of a forward pass, and the similarities of this rank's with them.
        per_clip: activations and inputs of one clip of a micro batch.
        cast: copies of the matrices in bf16.
        kept_buckets, kept_gathered: what of `buckets` and `gathered` stays between updates.
    """

    weights: float
    masters: float
    moments: float
    ema: float
    gradients: float
    reduced: float
    buckets: float
    gathered: float
    contrast: float
    per_clip: float
    cast: float
    kept_buckets: float
    kept_gathered: float

    @property
    def state(self) -> float:
        """Held between two updates."""
        return self.weights + self.masters + self.moments + self.ema + self.kept_buckets + self.kept_gathered

    def peak(self, micro_batch_size: int) -> float:
        """Of one update: everything at once, a little more than any moment needs."""
        state = self.weights + self.masters + self.moments + self.ema
        fixed = state + self.gradients + self.buckets + self.gathered + self.cast + self.contrast + RESERVED_BYTES
        return fixed + micro_batch_size * self.per_clip

    def largest_micro_batch(self, memory_bytes: float) -> int:
        """Returns how many clips fit; 0 where not even one does."""
        return max(0, int((memory_bytes - self.peak(0)) // self.per_clip))


def rank_memory(config: Config, trained: Sequence[Sizes], num_ranks: int) -> Memory:
    """Returns what each of `num_ranks` ranks holds in training."""
    parts = [_held(sizes, sizes.zero_stage(config), num_ranks) for sizes in trained]
    pairs = contrast_pairs(config, num_ranks)
    contrast = SIMILARITY_COPIES * pairs.similarities
    if num_ranks > 1:
        contrast += GATHERED_COPIES * pairs.embeddings * config.model.encoder.width
    summed = Memory(*(sum(values) for values in zip(*parts, strict=True)))
    is_bf16 = config.engine.precision == "bf16"
    return summed._replace(
        contrast=float(FP32_BYTES * contrast),
        per_clip=activation_megabytes(config) * 1e6 * (1 if is_bf16 else 2) + _input_bytes(config),
        cast=summed.cast if is_bf16 else 0.0,
    )


def memory_by_stage(config: Config, trained: Sequence[Sizes], num_ranks: int) -> dict[int, Memory]:
    """Returns the memory under each ZeRO stage."""
    configs = {stage: replace(config, engine=replace(config.engine, zero_stage=stage)) for stage in (0, 1, 2, 3)}
    return {stage: rank_memory(variant, trained, num_ranks) for stage, variant in configs.items()}


def _held(sizes: Sizes, stage: int, num_ranks: int) -> Memory:
    total = float(FP32_BYTES * sizes.total)
    groups = float(FP32_BYTES * sum(sizes.padded_groups(num_ranks)))
    padded = FP32_BYTES * sum(sizes.padded_parameters(num_ranks))
    masters = 0.0
    if stage == 0:
        weights, moment, gradients = total, total, total
        buckets = total if num_ranks > 1 else 0.0  # all gradients, flattened for the all-reduce
    elif stage < 3:
        weights, masters, moment = groups, groups / num_ranks, groups / num_ranks
        # Stage 1 keeps whole gradients until they are reduced, and its own share from then on.
        gradients = groups if stage == 1 else groups / num_ranks
        buckets = FP32_BYTES * BUCKET_ELEMENTS
    else:
        share = padded / num_ranks
        weights, masters, moment, gradients = share, share, share, share
        buckets = FP32_BYTES * BUCKET_ELEMENTS
    small = [size for size in sizes.padded_parameters(num_ranks) if size <= PERSISTENT_ELEMENTS]
    is_spread = stage == 3 and num_ranks > 1
    return Memory(
        weights=weights + sizes.buffer_bytes,
        masters=masters,
        moments=MOMENTS * moment,
        ema=moment,
        gradients=gradients,
        reduced=gradients / num_ranks if stage == 1 else gradients,
        buckets=buckets,
        gathered=min(padded, FP32_BYTES * LIVE_ELEMENTS) if is_spread else 0.0,
        contrast=0.0,
        per_clip=0.0,
        cast=total / 2,
        kept_buckets=buckets + gradients if stage == 3 else 0.0,
        kept_gathered=FP32_BYTES * sum(small) if is_spread else 0.0,
    )


def _input_bytes(config: Config) -> float:
    """Of one clip: uint8 frames as they come, float frames, sound and log-mel as the model reads them."""
    clip = config.clip
    frames = 3 * clip.num_frames * (clip.load_size**2 + FP32_BYTES * clip.image_size**2)
    return frames + FP32_BYTES * (clip.num_samples + clip.num_mel_frames * clip.num_mel_bins)
