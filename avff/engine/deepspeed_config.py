"""Our config -> DeepSpeed's dict, in one place."""

from typing import Any

from avff.config import Config

BUCKET_ELEMENTS = 50_000_000
"""Elements per gradient bucket and gather: 200 MB in fp32, where DeepSpeed's default takes 2 GB."""


def critics_zero_stage(config: Config) -> int:
    """Critics are small and read whole by the model's loss, so at most their optimizer state is sharded."""
    return min(config.engine.zero_stage, 1)


def gathers_whole_blocks(config: Config) -> bool:
    """True where ZeRO-3 gathers and releases transformer blocks as a whole.

    Not with frozen encoders: the first block that learns has an input without gradient, for which DeepSpeed releases
    weights at the beginning of the block's backward pass; only its own linear function fetches them once more.
    """
    return config.finetune.encoders == "train"


def deepspeed_config(config: Config, *, world_size: int, zero_stage: int) -> dict[str, Any]:
    """Returns what `deepspeed.initialize` wants for one trainable.

    `bf16` is autocast over fp32 weights: the master weights are the weights, gradients are summed in fp32,
    and every ZeRO stage keeps the same state in both precisions (DeepSpeed's own bf16 mode has a different
    optimizer per stage, with gaps in each).
    """
    engine = config.engine
    return {
        "train_batch_size": engine.global_batch_size,
        "train_micro_batch_size_per_gpu": engine.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps(world_size),
        "gradient_clipping": config.optim.clip_gradient_norm,
        "torch_autocast": {
            "enabled": engine.precision == "bf16",
            "dtype": "bfloat16",
            # None: gradients of all layers are reduced in fp32.
            "lower_precision_safe_modules": [],
        },
        "zero_optimization": {
            "stage": zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            # True replaces torch's linear function in the whole process by one of DeepSpeed's (ZeRO-3), which adds the
            # bias in bf16 and whose backward pass, compiled, returns wrong gradients without an error.
            "memory_efficient_linear": not gathers_whole_blocks(config),
        },
        # The client optimizer is ours (avff.engine.optimizer): it keeps the average of the weights.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
