"""Work of one clip in an update: what avff.models.flops counts, what MFU leaves out, and reading it."""

from avff.config import Config
from avff.models.flops import critic_gflops, forward_gflops, training_gflops

CRITIC_PASSES = 12
"""Of both critics, in forward passes over the hidden patches: 2 for the model's loss (forward, and back to its input);
for their own 3 forward (true, predicted, between), 6 backward, 1 for the slopes."""

FURTHER_WINDOW = 1 / 3
"""Of a sample's first window, what each further one takes of a loader core: four windows of a sample were measured to take
as long as two samples (docs/performance.md)."""


def reading_share(windows_per_sample: int) -> float:
    """Returns what a clip takes of a loader core, against one that is alone in its sample."""
    return (1 + (windows_per_sample - 1) * FURTHER_WINDOW) / windows_per_sample


def clip_gflops(config: Config, num_ranks: int) -> float:
    """Returns what one clip really takes: passes that are run again, and critics, included."""
    forward = sum(forward_gflops(config).values())
    again = 1.0 if config.passes_per_group(num_ranks) > 1 else 0.0
    again += 1.0 if config.model.activation_checkpointing == "blocks" else 0.0
    return training_gflops(config) + again * forward + CRITIC_PASSES * critic_gflops(config)
