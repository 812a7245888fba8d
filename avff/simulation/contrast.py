"""What one forward pass contrasts: every rank computes the loss of every group (avff.objectives.contrastive)."""

from typing import NamedTuple

from avff.config import Config


class Pairs(NamedTuple):
    """Of all ranks' clips of one forward pass; of one group where it takes two passes.

    Attributes:
        clips: whose embeddings are gathered.
        embeddings: of those clips and one modality.
        similarities: of sounds with pictures, all groups together.
        products_per_update: how often an update computes such similarities.
    """

    clips: int
    embeddings: int
    similarities: int
    products_per_update: int


def contrast_pairs(config: Config, num_ranks: int) -> Pairs:
    """Returns zeros where nothing is contrasted."""
    if config.stage != "pretrain" or config.pretrain.contrastive_weight == 0:
        return Pairs(0, 0, 0, 0)
    passes = config.passes_per_group(num_ranks)
    per_clip = 1 if config.pretrain.contrastive_level == "clip" else config.clip.num_slices
    clips = passes * config.engine.micro_batch_size * num_ranks
    group = config.pretrain.contrastive_group_size
    similarities = clips // group * (group * per_clip) ** 2
    return Pairs(clips, clips * per_clip, similarities, config.accumulation_steps(num_ranks) // passes)
