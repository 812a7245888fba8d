"""Work of one clip in an update: what avff.models.flops counts, and what MFU leaves out."""

from avff.config import Config
from avff.models.flops import critic_gflops, forward_gflops, training_gflops

CRITIC_PASSES = 12
"""Of both critics, in forward passes over the hidden patches: 2 for the model's loss (forward, and back to its input);
for their own 3 forward (true, predicted, between), 6 backward, 1 for the slopes."""


def clip_gflops(config: Config, num_ranks: int) -> float:
    """Returns what one clip really takes: passes that are run again, and critics, included."""
    forward = sum(forward_gflops(config).values())
    again = 1.0 if config.passes_per_group(num_ranks) > 1 else 0.0
    again += 1.0 if config.model.activation_checkpointing == "blocks" else 0.0
    return training_gflops(config) + again * forward + CRITIC_PASSES * critic_gflops(config)
