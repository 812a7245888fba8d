"""Collectives: values, gradients, and that one process needs none of them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from avff import distributed

RANKS = 2


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    x = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    gathered = distributed.all_gather_with_gradient(x)
    weights = torch.arange(12.0).view(2, 3, 2)
    # Each rank weighs the gathered whole differently, so a gradient that forgets the other rank shows.
    (gathered * weights * (rank + 1)).sum().backward()
    total = torch.tensor([float(rank + 1)])
    result = {
        "world": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "gathered": gathered.detach(),
        "gradient": x.grad,
        "sum": distributed.all_reduce_sum(total),
        "input": total,
        "objects": distributed.gather_objects({"rank": rank}),
        "broadcast": distributed.broadcast_object(f"from {rank}"),
    }
    distributed.barrier()
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=RANKS)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
    own = torch.arange(6.0).view(3, 2)
    weights = torch.arange(12.0).view(2, 3, 2)
    for rank, result in enumerate(results):
        assert result["world"] == (rank, RANKS, rank == 0)
        torch.testing.assert_close(result["gathered"], torch.stack([own, own + 10]))
        torch.testing.assert_close(result["gradient"], weights[rank] * (1 + 2))
        assert result["sum"].item() == 3.0 and result["input"].item() == rank + 1
        assert result["objects"] == [{"rank": 0}, {"rank": 1}]
        assert result["broadcast"] == "from 0"


def test_one_process_needs_no_group() -> None:
    x = torch.arange(6.0).view(3, 2).requires_grad_()
    gathered = distributed.all_gather_with_gradient(x)
    gathered.square().sum().backward()
    assert gathered.shape == (1, 3, 2)
    torch.testing.assert_close(x.grad, 2 * x.detach())
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects("a") == ["a"] and distributed.broadcast_object("b") == "b"
    torch.testing.assert_close(distributed.all_reduce_sum(x), x.detach())
    distributed.barrier()
