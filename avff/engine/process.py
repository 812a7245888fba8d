"""One training process: device, process group, threads, quiet libraries."""

import logging
import os

import torch
import torch.distributed as dist

from avff import distributed
from avff.config import EngineConfig


def start(config: EngineConfig, *, seed: int) -> torch.device:
    """Joins the process group and sets threads, seed and determinism; returns this rank's device.

    Under torchrun or SLURM the usual variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) say where to
    meet; a plain process needs none of them and opens no port.
    """
    device = _device()
    _quiet_libraries()
    torch.set_num_threads(config.num_threads or _threads_per_rank())
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if not dist.is_initialized():
        _join(device)
    if not distributed.is_main():
        # Ranks agree on what happens, so rank 0 speaks for all; what stops a rank is raised, not logged.
        logging.getLogger("avff").setLevel(logging.CRITICAL)
    # Start values of the weights: the same on every rank and for every number of ranks.
    torch.manual_seed(seed)
    return device


def stop() -> None:
    """Leaves the process group once every rank got here, so that no rank is torn down under another's feet."""
    if dist.is_initialized():
        distributed.barrier()
        dist.destroy_process_group()


def abandon() -> None:
    """Leaves after an error, without waiting for ranks that may never come.

    A process that exits with gloo's threads alive is now and then aborted (code -6), which hides its own code.
    NCCL is left to the exit: closing it can wait for a rank that is gone.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        # Said aloud, DeepSpeed does not warn that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return torch.device("cpu")
    device = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _threads_per_rank() -> int:
    return max(1, len(os.sched_getaffinity(0)) // distributed.local_world_size())


def _join(device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if distributed.is_launched():
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    # Imported here and not above, because DeepSpeed chooses its accelerator on import.
    import deepspeed

    # Tells DeepSpeed that no optional C++ op is there: the one it would compile on first use (a shared-memory
    # all-reduce for inference) is of no use here, and the lock of a killed compiler would hang every later start.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    deepspeed.init_distributed(dist_backend=backend)


def _quiet_libraries() -> None:
    for name in ("DeepSpeed", "deepspeed", "torch.distributed", "numexpr"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Drops two of DeepSpeed's warnings: our optimizer is tested, and a skipped update is named by the loop."""
    return not any(text in record.getMessage() for text in ("untested optimizer", "OVERFLOW! Skipping step"))
