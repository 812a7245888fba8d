"""What one forward pass contrasts: each rank its own clips with their whole groups (avff.objectives.contrastive)."""

from typing import NamedTuple

from avff.config import Config


class Pairs(NamedTuple):
    """Of one forward pass; of one group where it takes two passes.

    Attributes:
        embeddings: of all ranks' clips, both modalities, which are gathered.
        similarities: that one rank computes, of its own sounds and of its own pictures.
        products_per_update: how often an update does.
    """

    embeddings: int
    similarities: int
    products_per_update: int


def contrast_pairs(config: Config, num_ranks: int) -> Pairs:
    """Returns zeros where nothing is contrasted."""
    if config.stage != "pretrain" or config.pretrain.contrastive_weight == 0:
        return Pairs(0, 0, 0)
    passes = config.passes_per_group(num_ranks)
    per_clip = 1 if config.pretrain.contrastive_level == "clip" else config.clip.num_slices
    own = 2 * passes * config.engine.micro_batch_size * per_clip
    sought = config.pretrain.contrastive_group_size * per_clip
    return Pairs(own * num_ranks, own * sought, config.accumulation_steps(num_ranks) // passes)
