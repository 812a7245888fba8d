"""One stage on one number of GPUs: the batch that divides, and everything that follows from it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from avff.config import Config
from avff.errors import ConfigError
from avff.models.flops import training_gflops
from avff.simulation import saving
from avff.simulation.cluster import Cluster
from avff.simulation.costs import Costs
from avff.simulation.memory import RESERVED_BYTES, memory_by_stage
from avff.simulation.parameters import Sizes
from avff.simulation.timing import step_time

Scaling = Literal["weak", "strong"]
SAVED_BYTES, WEIGHT_FILE_BYTES = 16, 8
"""Per parameter: fp32 weights, moments and average; and the two weight files that rank 0 makes of them."""
NO_MATTER = 0.001
"""Of goodput: what a save interval may change it by and still be as good."""


def scaled_config(config: Config, num_gpus: int, scaling: Scaling) -> Config:
    """Returns the config as it would run on so many GPUs.

    `strong` keeps the batch and lowers the micro batch until it divides. `weak` keeps the micro batch, and with it the
    clips of a GPU: the batch grows with the GPUs, and the contrastive group where every GPU needs a clip of each. The
    batch is the smallest of whole passes whose distinct samples are whole groups.

    Raises:
        ConfigError: what does not divide, and what would.
    """
    if scaling == "strong":
        return _with(config, micro_batch_size=_working_micro_batch(config, num_gpus))
    micro, windows = config.engine.micro_batch_size, config.data.windows_per_sample
    per_pass = num_gpus * micro
    if config.stage != "pretrain" or config.pretrain.contrastive_weight == 0:
        return _with(config, global_batch_size=math.lcm(per_pass, num_gpus * windows))
    group = _working_group(config.pretrain.contrastive_group_size, micro, num_gpus)
    pretrain = replace(config.pretrain, contrastive_group_size=group)
    return _with(config, global_batch_size=math.lcm(per_pass, group * windows), pretrain=pretrain)


def _working_group(group: int, micro: int, num_gpus: int) -> int:
    """Returns the contrastive group that is kept, or the next larger one that divides; at most one forward pass of all."""
    per_pass = num_gpus * micro
    if group % num_gpus == 0 and (per_pass % group == 0 or group % per_pass == 0):
        return group
    shares = [share for share in range(1, micro + 1) if micro % share == 0]
    return num_gpus * next((share for share in shares if share * num_gpus >= group), micro)


def _with(config: Config, pretrain: Any = None, **engine: Any) -> Config:
    return replace(config, engine=replace(config.engine, **engine), pretrain=pretrain or config.pretrain)


def _working_micro_batch(config: Config, num_gpus: int) -> int:
    """Returns the largest micro batch up to the config's that divides."""
    config.accumulation_steps(1)
    for micro in range(config.engine.micro_batch_size, 0, -1):
        try:
            _with(config, micro_batch_size=micro).accumulation_steps(num_gpus)
        except ConfigError as error:
            reason = error
        else:
            return micro
    raise reason


def simulate(
    config: Config, trained: Sequence[Sizes], cluster: Cluster, costs: Costs, num_gpus: int, scaling: Scaling
) -> dict[str, Any]:
    """Returns one row: numbers and text by column; where the stage cannot run so, `problem` says why and the rest is None.

    The stage is as many clips as the config's steps and batch make.
    """
    try:
        scaled = scaled_config(config, num_gpus, scaling)
        scaled.accumulation_steps(num_gpus)
    except ConfigError as error:
        return {"gpus": num_gpus, "nodes": cluster.nodes_of(num_gpus), "problem": str(error)}
    time, memory = step_time(scaled, trained, cluster, costs, num_gpus), memory_by_stage(scaled, trained, num_gpus)
    batch, micro = scaled.engine.global_batch_size, scaled.engine.micro_batch_size
    own, available = memory[scaled.engine.zero_stage], cluster.memory_bytes(num_gpus)
    num_steps = -(-config.optim.num_steps * config.engine.global_batch_size // batch)
    clips_per_second = batch / time.total
    cores = cluster.cores_per_gpu(num_gpus) if cluster.device == "cpu" else 1.0
    peak = cluster.peak_tflops * 1e3 * num_gpus * cores
    row = {
        "gpus": num_gpus,
        "nodes": cluster.nodes_of(num_gpus),
        "problem": "",
        "changed": _changed(config, scaled),
        "batch": batch,
        "micro": micro,
        "passes": scaled.accumulation_steps(num_gpus),
        "group": scaled.group_size,
        "two_pass": scaled.passes_per_group(num_gpus) > 1,
        "num_runs": scaled.num_runs,
        "steps": num_steps,
        "warmup_steps": config.optim.warmup_steps,
        "clips_per_second": clips_per_second,
        "step_seconds": time.total,
        "mfu": clips_per_second * training_gflops(scaled) / peak,
        "compute_seconds": time.compute,
        "communication_seconds": time.communication,
        "exposed_seconds": time.exposed,
        "contrast_seconds": time.contrast,
        "optimizer_seconds": time.optimizer,
        "wait_seconds": time.wait,
        "limit": time.limit,
        "loader_cores": time.loader_cores,
        "cores": time.cores,
        "read_gb_per_second": time.read_gb_per_second,
        **{f"zero{stage}_gb": held.peak(micro) / 1e9 for stage, held in memory.items()},
        "weights_gb": own.weights / 1e9,
        "gradients_gb": own.gradients / 1e9,
        "masters_gb": own.masters / 1e9,
        "moments_gb": own.moments / 1e9,
        "ema_gb": own.ema / 1e9,
        "contrast_gb": own.contrast / 1e9,
        "activations_gb": micro * own.per_clip / 1e9,
        "other_gb": (own.buckets + own.gathered + own.cast + RESERVED_BYTES) / 1e9,
        "memory_fits": own.peak(micro) <= available,
        "largest_micro": own.largest_micro_batch(available),
    }
    return row | _saving(scaled, trained, cluster, costs, num_gpus, time.total, num_steps)


def _changed(config: Config, scaled: Config) -> list[str]:
    """Returns the columns of `scaled` that are not those of the config as it stands."""
    own, other = (
        {"batch": one.engine.global_batch_size, "micro": one.engine.micro_batch_size, "group": one.group_size}
        for one in (config, scaled)
    )
    return [name for name in own if own[name] != other[name]]


def _saving(
    config: Config,
    trained: Sequence[Sizes],
    cluster: Cluster,
    costs: Costs,
    num_gpus: int,
    step_seconds: float,
    num_steps: int,
) -> dict[str, Any]:
    """Of a run with failures: how often to save, and how long everything takes."""
    blocked, total, saved = save_seconds(config, trained, cluster, costs, num_gpus)
    overlaps = config.engine.overlap_saving
    held_up, lag = (blocked, total - blocked) if overlaps else (total, 0.0)
    per_hour = cluster.failures_per_hour(num_gpus)
    mean = 3600 / per_hour if per_hour else float("inf")
    stage_seconds = num_steps * step_seconds
    best = saving.best_interval(held_up, mean)
    # A save has to be over when the next one begins, and one at the end is made anyway.
    interval = min(stage_seconds, max(best, total))

    def share(seconds: float) -> float:
        return saving.goodput(
            seconds,
            blocked_seconds=held_up,
            lag_seconds=lag,
            restart_seconds=cluster.restart_seconds,
            mean_seconds_between_failures=mean,
        )

    best_steps = max(1, round(interval / step_seconds))
    own_steps = min(num_steps, config.engine.checkpoint_every_steps)
    goodput, own = share(best_steps * step_seconds), share(own_steps * step_seconds)
    rarest = saving.rarest(share, best_steps, num_steps, step_seconds, least_share=goodput - NO_MATTER)
    hours = stage_seconds / 3600 / goodput if goodput else float("inf")
    return {
        "checkpoint_gb": saved / 1e9,
        "blocked_seconds": held_up,
        "save_seconds": total,
        "hours_between_failures": mean / 3600,
        "save_every_steps": best_steps,
        "save_every_steps_at_most": rarest,
        "save_every_minutes": best_steps * step_seconds / 60,
        "goodput": goodput,
        "goodput_as_configured": own,
        "hours": hours,
        "gpu_hours": hours * num_gpus,
        "cost": hours * num_gpus * cluster.price_per_gpu_hour if cluster.price_per_gpu_hour else None,
    }


def save_seconds(
    config: Config, trained: Sequence[Sizes], cluster: Cluster, costs: Costs, num_gpus: int
) -> tuple[float, float, float]:
    """Returns seconds that a save holds training up, its whole duration, and its bytes."""
    saved = SAVED_BYTES * sum(part.total for part in trained)
    files = WEIGHT_FILE_BYTES * trained[0].total
    # Under stage 0 every rank holds everything, and rank 0 alone writes.
    writers = 1 if config.engine.zero_stage == 0 else num_gpus
    blocked = max(
        costs.least_blocked_seconds,
        saved / writers / 1e9 / (costs.copy_gb_per_second or cluster.host_copy_gb_per_second),
    )
    nodes = min(writers, cluster.nodes_of(num_gpus))
    node = cluster.node_storage_write_gb_per_second
    written = saved / 1e9 / min(cluster.storage_write_gb_per_second, nodes * node) + files / 1e9 / node
    if costs.save_gb_per_second:  # of a few ranks, which did not meet the limit of a storage that all share
        shared = saved / 1e9 / cluster.storage_write_gb_per_second
        written = max(saved / writers / 1e9 / costs.save_gb_per_second, shared)
    return blocked, blocked + max(costs.least_writing_seconds, written), saved + files
