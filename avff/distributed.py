"""Ranks and collectives; the only reader of RANK, WORLD_SIZE and LOCAL_RANK.

Works unchanged in one process that never called `init_process_group`.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size() if is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def main_address() -> str:
    """Host of rank 0, as the launcher gives it."""
    return os.environ["MASTER_ADDR"]


def main_port() -> int:
    """Port of that host at which the ranks meet."""
    return int(os.environ["MASTER_PORT"])


def launcher_listens() -> bool:
    """True where torchrun's agent listens there, so that rank 0 must not."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_launched() -> bool:
    """True under torchrun or SLURM, which say where the ranks meet."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main() -> bool:
    """True on the one rank that writes logs and prints."""
    return rank() == 0


def barrier() -> None:
    if is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


class _AllGatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        # Flat, for gloo takes no stacked tensors.
        gathered = x.new_empty(dist.get_world_size() * x.numel())
        dist.all_gather_into_tensor(gathered, x.flatten())
        return gathered.view(-1, *x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Every rank's loss reads this rank's part, so each of them has a gradient for it.
        own = gradient.new_empty(gradient[0].numel())
        dist.reduce_scatter_tensor(own, gradient.flatten())
        return own.view(gradient.shape[1:])


def all_gather_with_gradient(x: Tensor) -> Tensor:
    """Stacks every rank's tensor, with gradient.

    Args:
        x: any shape, equal on all ranks.

    Returns:
        (world_size, *x.shape). The backward pass gives each rank the sum of the gradients that all ranks hold for its
        part: the gradient of the sum of their losses. Data parallelism's mean over ranks makes of it the gradient of
        their mean.
    """
    if world_size() == 1:
        return x.unsqueeze(0)
    return _AllGatherWithGradient.apply(x)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Returns the sum over ranks; the input stays as it is."""
    x = x.detach().clone()
    if is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


def gather_objects(value: object) -> list:
    """Returns every rank's picklable value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: object) -> object:
    """Returns rank 0's picklable value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
