"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from avff.config import OptimConfig


def learning_rate_factor(step: int, config: OptimConfig) -> float:
    """Returns the share of the peak learning rate that update `step` uses.

    Linear warm-up reaches 1 at update `warmup_steps - 1`; half a cosine then falls to
    `min_learning_rate_factor` at the last update.

    Args:
        step: index of the update, 0 for the first.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step + 1 - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    lowest = config.min_learning_rate_factor
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
