"""Two ranks of which one fails: both raise the same, and it says where it happened."""

import json
import re
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from avff import distributed
from avff.engine import agreement
from avff.errors import ShardError, describe

RANKS = 2


def fail_on(*ranks: int) -> str:
    if distributed.rank() in ranks:
        raise ShardError("shards/a.tar: missing")
    return f"rank {distributed.rank()} is fine"


def _outcome(function) -> str:
    try:
        return function()
    except (ShardError, OSError) as error:
        return describe(error)


def full_disk() -> str:
    if distributed.rank() == 1:
        raise OSError(28, "No space left on device")
    return "fine"


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    results = {
        "nowhere": _outcome(lambda: agreement.everywhere(fail_on)),
        "on one": _outcome(lambda: agreement.everywhere(lambda: fail_on(1))),
        "on both": _outcome(lambda: agreement.everywhere(lambda: fail_on(0, 1))),
        "on main": _outcome(lambda: agreement.on_main(lambda: fail_on(0))),
        "problems": agreement.problems_of(full_disk),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_what_fails_on_one_rank_fails_on_all_and_names_it(tmp_path):
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=RANKS)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS))
    assert (first.pop("nowhere"), second.pop("nowhere")) == ("rank 0 is fine", "rank 1 is fine")
    assert first == second
    assert re.fullmatch(r"shards/a.tar: missing \(on rank 1 \(host .*\), not on all 2 ranks\)", first["on one"])
    assert first["on both"] == first["on main"] == "shards/a.tar: missing"
    assert first["problems"] == ["rank 1: [Errno 28] No space left on device"]
