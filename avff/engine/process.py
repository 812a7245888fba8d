"""One training process: how it starts, and how it ends with the documented code (device, process group, threads)."""

import logging
import os
import signal
import socket
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from avff import distributed, launched
from avff.config import Config
from avff.engine.signals import STOP_SIGNALS
from avff.errors import AvffError, describe, exit_code

logger = logging.getLogger(__name__)


def start(config: Config) -> torch.device:
    """Joins the process group and sets threads, seed and determinism; returns this rank's device.

    A collective gives up after twice `faults.hang_seconds`: long after the watchdog has named who keeps it waiting.
    Under torchrun or SLURM the usual variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) say where to
    meet; a plain process needs none of them and opens no port.
    """
    device = _device()
    _quiet_libraries()
    torch.set_num_threads(config.engine.num_threads or _threads_per_rank())
    if config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if not dist.is_initialized():
        _join(device, timedelta(seconds=2 * config.faults.hang_seconds))
    if not distributed.is_main():
        # Ranks agree on what happens, so rank 0 speaks for all; what stops a rank is raised, not logged.
        logging.getLogger("avff").setLevel(logging.CRITICAL)
    # Start values of the weights: the same on every rank and for every number of ranks.
    torch.manual_seed(config.seed)
    return device


def end(code: int) -> int:
    """Ends a rank that did what it was asked to, once every rank got here; returns `code` in a plain process.

    Under a launcher it does not return: the process ends here with `code`, because the interpreter's own end, with
    threads of gloo and wandb still alive, is now and then an abort (code -6), which would pass for a crash.
    """
    _ignore_signals()
    if dist.is_initialized():
        try:
            distributed.barrier()
        except RuntimeError as error:
            # What was to be saved is saved: a rank that died since then changes nothing about it.
            logger.critical("rank %d has finished, but not every rank ended with it: %s", distributed.rank(), error)
    _leave(code)
    return code


def fail(error: BaseException, speaks: bool = True, alone: bool = True) -> None:
    """Ends a rank that an error stopped, without waiting for ranks that may never come; returns in a plain process.

    Under a launcher it prints the error and ends the process with the error's code (avff.errors). A plain process
    leaves both to its command line.

    Args:
        speaks: whether this rank is the one to print it, where several were stopped by the same.
        alone: whether this rank is the only one that was stopped by it; then it is named.
    """
    _ignore_signals()
    if speaks and distributed.is_launched():
        where = (
            f"rank {distributed.rank()} (host {socket.gethostname()}): "
            if alone and distributed.world_size() > 1
            else ""
        )
        expected = isinstance(error, (AvffError, KeyboardInterrupt))
        text = describe(error) if expected else "".join(traceback.format_exception(error))
        sys.stderr.write(f"avff train: {where}{text}\n")
    _leave(exit_code(error))


def _ignore_signals() -> None:
    """Lets a rank that is about to end do so with its own code: a launcher sends TERM once the first rank is gone."""
    if distributed.is_launched():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _leave(code: int) -> None:
    launched.note_exit_code(code)
    if distributed.is_launched():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # One process has no peer to wait for. NCCL is left to the exit all the same.
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


def _join(device: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if distributed.is_launched():
        dist.init_process_group(backend, timeout=timeout, device_id=device if device.type == "cuda" else None)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    # Imported here and not above, because DeepSpeed chooses its accelerator on import.
    import deepspeed

    # Tells DeepSpeed that no optional C++ op is there: the one it would compile on first use (a shared-memory
    # all-reduce for inference) is of no use here, and the lock of a killed compiler would hang every later start.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout)


def _quiet_libraries() -> None:
    for name in ("DeepSpeed", "deepspeed", "torch.distributed", "numexpr"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Drops two of DeepSpeed's warnings: our optimizer is tested, and a skipped update is named by the loop."""
    return not any(text in record.getMessage() for text in ("untested optimizer", "OVERFLOW! Skipping step"))
