"""A cluster in numbers: the YAML files of configs/clusters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from avff.errors import ConfigError
from avff.strict_yaml import from_dict


class Links(NamedTuple):
    """What a collective over some GPUs finds: seconds of one hop, and bytes per second of each GPU to the next."""

    hop_seconds: float
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a training job finds on its nodes. GB are 1e9 bytes; bandwidths are in one direction.

    On a CPU machine (`device: cpu`) a "GPU" is a training process: `peak_tflops` is then that of one core, and `memory_gb`
    and `cores_per_node` are shared by all processes.
    """

    name: str
    source: str
    """Where the numbers come from."""
    device: Literal["gpu", "cpu"] = "gpu"
    gpus_per_node: int
    cores_per_node: int
    peak_tflops: float
    """Dense bf16 (on a CPU: what is used), per GPU, or per core of a CPU machine."""
    peak_fp32_tflops: float
    """Of fp32 products without TF32, likewise."""
    memory_gb: float
    """Of one GPU."""
    memory_gb_per_second: float
    """Of one GPU's own memory: what the optimizer's step takes."""
    intra_node_gb_per_second: float
    """Of one GPU's links to the others of its node."""
    intra_node_latency_microseconds: float
    """Of one hop of a collective, start-up included."""
    inter_node_gb_per_second: float
    """Of all network adapters of one node together."""
    inter_node_latency_microseconds: float
    link_efficiency: float
    """Share of those bandwidths that collectives reach."""
    storage_gb_per_second: float
    """Read by all nodes together."""
    node_storage_gb_per_second: float
    """Read by one node."""
    storage_write_gb_per_second: float
    """Written by all nodes together."""
    node_storage_write_gb_per_second: float
    host_copy_gb_per_second: float
    """From one GPU to CPU memory: what a checkpoint's copy takes."""
    failures_per_gpu_hour: float
    """That end a job: one per million hours is 1e-6."""
    failures_per_node_hour: float = 0.0
    restart_seconds: float
    """From a failure to the first step after it: notice, queue, start, load."""
    price_per_gpu_hour: float = 0.0
    """In any currency; 0: no costs are shown."""

    def __post_init__(self) -> None:
        zero_is_fine = ("failures_per_gpu_hour", "failures_per_node_hour", "restart_seconds", "price_per_gpu_hour")
        problems = []
        for name, value in vars(self).items():
            if isinstance(value, int | float) and (value < 0 or (value == 0 and name not in zero_is_fine)):
                needed = "0 or more" if name in zero_is_fine else "positive"
                problems.append(f"{name} is {value}; it has to be {needed}")
        if self.link_efficiency > 1:
            problems.append(f"link_efficiency is {self.link_efficiency}; it is a share, at most 1")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def worker(self) -> str:
        """What trains, for a table."""
        return "GPU" if self.device == "gpu" else "process"

    @property
    def workers(self) -> str:
        return "GPUs" if self.device == "gpu" else "processes"

    def nodes_of(self, num_gpus: int) -> int:
        return -(-num_gpus // self.gpus_per_node)

    def gpus_on_node(self, num_gpus: int) -> int:
        """Of the fullest node of a job."""
        return min(num_gpus, self.gpus_per_node)

    def memory_bytes(self, num_gpus: int) -> float:
        """Memory of one of `num_gpus` training processes."""
        shared_by = self.gpus_on_node(num_gpus) if self.device == "cpu" else 1
        return self.memory_gb * 1e9 / shared_by

    def cores_per_gpu(self, num_gpus: int) -> float:
        return self.cores_per_node / self.gpus_on_node(num_gpus)

    def links(self, num_gpus: int) -> Links:
        """What a ring over all GPUs finds: it leaves each node once, over all of the node's adapters together."""
        gb_per_second, hop = self.intra_node_gb_per_second, self.intra_node_latency_microseconds
        if self.nodes_of(num_gpus) > 1:
            gb_per_second, hop = min(gb_per_second, self.inter_node_gb_per_second), self.inter_node_latency_microseconds
        return Links(hop / 1e6, gb_per_second * 1e9 * self.link_efficiency)

    def failures_per_hour(self, num_gpus: int) -> float:
        return num_gpus * self.failures_per_gpu_hour + self.nodes_of(num_gpus) * self.failures_per_node_hour


def load_cluster(path: str | Path) -> Cluster:
    """Reads a cluster's YAML file.

    Raises:
        ConfigError: naming file, key, value and the nearest valid key; all mistakes at once.
    """
    path = Path(path)
    if not path.is_file():
        ready = ", ".join(sorted(str(p) for p in Path("configs/clusters").glob("*.yaml")))
        raise ConfigError(f"{path}: no such cluster file; ready ones are {ready or 'in configs/clusters'}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path}: expected `key: value` lines, found {found}; copy a file of configs/clusters")
    return from_dict(Cluster, values, where=str(path))


def is_cluster_file(path: Path) -> bool:
    """Says whether a YAML file holds a cluster's keys, which no config has; whatever else is wrong is for its reader to say."""
    try:
        values = yaml.safe_load(path.read_text()) if path.is_file() else None
    except yaml.YAMLError:
        return False
    return isinstance(values, dict) and bool({"gpus_per_node", "cores_per_node", "peak_tflops"} & set(values))
