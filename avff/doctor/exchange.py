"""Messages between the ranks over torch's key-value store alone: it works where collectives do not, and names who is missing."""

import json
import os
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from avff import distributed

POLL_SECONDS = 0.05
NEWS = "at"
"""Key under which a rank says what it is about to do."""


class Exchange:
    """Where every rank puts JSON values under a key, and rank 0 collects them.

    Args:
        store: a `torch.distributed.Store`.
        port: of its server on `address`, for child processes.
    """

    def __init__(self, store: Any, *, rank: int, world_size: int, address: str, port: int):
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.address = address
        self.port = port

    def put(self, key: str, value: Any) -> None:
        """Leaves this rank's value for rank 0."""
        self.store.set(f"{key}/{self.rank}", json.dumps(value))

    def publish(self, key: str, value: Any) -> None:
        """Leaves one value for all ranks."""
        self.store.set(key, json.dumps(value))

    def await_published(self, key: str, limit_seconds: float) -> Any:
        """Returns what rank 0 published.

        Raises:
            RuntimeError: it did not within the limit (torch.distributed.DistError), or it is gone.
        """
        self.store.wait([key], timedelta(seconds=limit_seconds))
        return json.loads(self.store.get(key))

    def collect(self, key: str, ranks: Collection[int], quiet_seconds: float) -> dict[int, Any]:
        """Returns the values of those ranks that have put one; a rank without news for `quiet_seconds` is left out."""
        pending, values = set(ranks), {}
        news: dict[int, Any] = {}
        last_heard = dict.fromkeys(pending, time.monotonic())
        while pending:
            for rank in sorted(pending):
                if self._has(key, rank):
                    values[rank] = self._get(key, rank)
                elif (latest := self.news_of(rank)) != news.get(rank):
                    news[rank], last_heard[rank] = latest, time.monotonic()
            pending = {rank for rank in pending - values.keys() if time.monotonic() - last_heard[rank] < quiet_seconds}
            time.sleep(POLL_SECONDS if pending else 0)
        return dict(sorted(values.items()))

    def news_of(self, rank: int) -> str:
        """Returns what a rank said last that it is about to do, nothing if it never came."""
        return self._get(NEWS, rank) if self._has(NEWS, rank) else ""

    def _has(self, key: str, rank: int) -> bool:
        return self.store.check([f"{key}/{rank}"])

    def _get(self, key: str, rank: int) -> Any:
        return json.loads(self.store.get(f"{key}/{rank}"))


def connect(limit_seconds: float) -> Exchange:
    """Meets the other ranks where the launcher says; a plain process meets itself.

    Raises:
        RuntimeError: nobody listens there, or the port is taken (torch.distributed.DistError).
    """
    if not distributed.is_launched():
        return join("127.0.0.1", 0, rank=0, world_size=1, limit_seconds=limit_seconds)
    return join(
        distributed.main_address(),
        distributed.main_port(),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        limit_seconds=limit_seconds,
        listens=distributed.rank() == 0 and not distributed.launcher_listens(),
    )


def join(
    address: str, port: int, *, rank: int, world_size: int, limit_seconds: float, listens: bool | None = None
) -> Exchange:
    """Connects one rank, which is the server if it `listens` (default: rank 0 does); port 0 takes a free one."""
    from torch.distributed import PrefixStore, TCPStore

    server = TCPStore(
        address,
        port,
        is_master=rank == 0 if listens is None else listens,
        wait_for_workers=False,
        timeout=timedelta(seconds=limit_seconds),
    )
    # torchrun's own keys are in there too, and those of an attempt that it has given up.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"avff-doctor-{attempt}", server)
    return Exchange(store, rank=rank, world_size=world_size, address=address, port=server.port)
