"""Seconds of one update: passes, exposed communication, optimizer, and the loader that has to keep up."""

from collections.abc import Sequence
from typing import NamedTuple

from avff.config import Config
from avff.simulation.cluster import Cluster, Links
from avff.simulation.contrast import contrast_pairs
from avff.simulation.costs import Costs
from avff.simulation.memory import rank_memory
from avff.simulation.parameters import Sizes
from avff.simulation.traffic import FP32_BYTES, Collective, update_traffic
from avff.simulation.work import clip_gflops, reading_share

BACKWARD_SHARE = 2 / 3
"""Of a micro batch's seconds: what communication can hide behind."""
OPTIMIZER_PASSES = 9
"""Reads and writes of AdamW with an average: weights, gradient, two moments and average read, all but the gradient written."""
TRAINING_CORES = 1.0
"""Of each GPU's share of the node's cores: what its training process itself keeps busy."""


class StepTime(NamedTuple):
    """Seconds of one update, and where they go.

    Attributes:
        compute: forward and backward passes of all micro batches.
        communication: all collectives, one after the other.
        exposed: what of that nothing hides.
        contrast: similarities of its own clips with their contrastive groups, in fp32.
        optimizer: Adam, on this rank's share.
        wait: for the loader or the storage, beyond all this.
        loader_cores: that one GPU's clips take to decode.
        cores: that one GPU's loader can have.
        read_gb_per_second: from storage, all ranks together.
        limit: what decides: compute, contrast, communication, loader, storage.
    """

    compute: float
    communication: float
    exposed: float
    contrast: float
    optimizer: float
    wait: float
    loader_cores: float
    cores: float
    read_gb_per_second: float
    limit: str

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.contrast + self.optimizer + self.wait


def compute_seconds(config: Config, cluster: Cluster, costs: Costs, num_gpus: int) -> float:
    """Returns the passes of one update on one GPU, or on one process's share of a CPU machine's cores."""
    clips = config.engine.global_batch_size / num_gpus
    cores = _cores_of(cluster, num_gpus)
    seconds = clips * clip_gflops(config, num_gpus) * 1e9 / (cluster.peak_tflops * 1e12 * costs.mfu * cores)
    if cluster.device == "cpu":  # decoding takes turns with training on the same cores
        seconds += clips * _core_seconds_per_clip(config, costs) / cores
    return seconds


def contrast_seconds(config: Config, cluster: Cluster, costs: Costs, num_gpus: int) -> float:
    """Returns one forward and two backward products of an update."""
    pairs = contrast_pairs(config, num_gpus)
    flop = 3 * 2 * pairs.similarities * config.model.encoder.width * pairs.products_per_update
    return flop / (cluster.peak_fp32_tflops * 1e12 * costs.mfu * _cores_of(cluster, num_gpus))


def _cores_of(cluster: Cluster, num_gpus: int) -> float:
    """What peaks are to be multiplied by: those of a CPU machine are of one core."""
    return cluster.cores_per_gpu(num_gpus) if cluster.device == "cpu" else 1.0


def exposed_seconds(
    traffic: list[Collective], links: Links, num_gpus: int, compute: float, num_micro_batches: int
) -> float:
    """Returns what backward passes cannot hide: of what may overlap, the excess over them, and the last collective."""
    fixed = sum(c.seconds(links, num_gpus) for c in traffic if not c.overlaps)
    overlapping = [c for c in traffic if c.overlaps]
    if not overlapping:
        return fixed
    total = sum(c.seconds(links, num_gpus) for c in overlapping)
    last = overlapping[-1].seconds(links, num_gpus) / overlapping[-1].times
    # Collectives of one update hide behind the last micro batch alone, unless each micro batch has its own.
    per_pass = max(c.times for c in overlapping) >= num_micro_batches
    hiding = BACKWARD_SHARE * compute / (1 if per_pass else num_micro_batches)
    return fixed + max(total - hiding, last)


def step_time(config: Config, trained: Sequence[Sizes], cluster: Cluster, costs: Costs, num_gpus: int) -> StepTime:
    """Returns the seconds of one update of the config's stage.

    Raises:
        ConfigError: batch, micro batch or contrastive group do not divide over so many GPUs.
    """
    micro_batches = config.accumulation_steps(num_gpus)
    traffic, links = update_traffic(config, trained, num_gpus), cluster.links(num_gpus)
    compute = compute_seconds(config, cluster, costs, num_gpus)
    communication = sum(c.seconds(links, num_gpus) for c in traffic)
    exposed = exposed_seconds(traffic, links, num_gpus, compute, micro_batches)
    moments = rank_memory(config, trained, num_gpus).ema / FP32_BYTES
    optimizer = OPTIMIZER_PASSES * FP32_BYTES * moments / (cluster.memory_gb_per_second * 1e9)
    contrast = contrast_seconds(config, cluster, costs, num_gpus)
    busy = compute + exposed + contrast + optimizer
    loader_seconds, cores, wanted = 0.0, cluster.cores_per_gpu(num_gpus), 0.0
    if cluster.device == "gpu":
        cores = max(0.0, cores - TRAINING_CORES)
        clips = config.engine.global_batch_size / num_gpus
        wanted = clips * _core_seconds_per_clip(config, costs)
        loader_seconds = wanted / cores if cores else float("inf")
    num_bytes = config.samples_per_step * costs.megabytes_per_clip * 1e6
    storage_seconds = num_bytes / (1e9 * _storage_gb_per_second(cluster, num_gpus))
    total = max(busy, loader_seconds, storage_seconds)
    limits = {
        "compute": compute,
        "contrast": contrast,
        "communication": exposed,
        "loader": loader_seconds,
        "storage": storage_seconds,
    }
    names = ("compute", "contrast", "communication") if total == busy else ("loader", "storage")
    return StepTime(
        compute=compute,
        communication=communication,
        exposed=exposed,
        contrast=contrast,
        optimizer=optimizer,
        wait=total - busy,
        loader_cores=wanted / busy,
        cores=cores,
        read_gb_per_second=num_bytes / 1e9 / total,
        limit=max(names, key=lambda name: limits[name]),
    )


def _core_seconds_per_clip(config: Config, costs: Costs) -> float:
    return reading_share(config.data.windows_per_sample) / costs.clips_per_second_per_core


def _storage_gb_per_second(cluster: Cluster, num_gpus: int) -> float:
    return min(cluster.storage_gb_per_second, cluster.nodes_of(num_gpus) * cluster.node_storage_gb_per_second)
