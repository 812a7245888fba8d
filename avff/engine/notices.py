"""What ranks tell each other outside of collectives: that they live, where they stand, and why they stop.

A collective that one rank never enters tells the others nothing. So each rank keeps a notice in a small store of our
own, which rank 0 holds and any rank can read while the process group is stuck or broken.
"""

import json
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, NamedTuple

import torch.distributed as dist

from avff import distributed
from avff.errors import TrainingError

PHASES = (
    "starting",
    "writing metrics",
    "validating",
    "drawing",
    "saving",
    "reading data",
    "computing",
    "agreeing",
    "applying",
    "ending",
)
"""What a rank does, in the order in which that happens after `step` updates."""

CONNECT_SECONDS = 60.0


class Place(NamedTuple):
    """How far a rank has come; of two places, `order` is smaller for the one that is behind.

    Attributes:
        step: updates done.
        phase: one of PHASES.
        tick: marks made in this phase of this step, such as one per micro batch.
    """

    step: int = 0
    phase: str = PHASES[0]
    tick: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        return self.step, PHASES.index(self.phase), self.tick

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}"


class Notice(NamedTuple):
    """What one rank says about itself.

    Attributes:
        beat: grows with every sign of life.
        kind: "" while it works; "stopped" by an error of its own; "lost" its connection to another rank; "hang" when
            it found that the run hangs.
        words: the sentence that belongs to the kind.
        has_left: it has read what it wanted to know.
    """

    rank: int
    host: str
    beat: int
    place: Place = Place()
    kind: Literal["", "stopped", "lost", "hang"] = ""
    words: str = ""
    has_left: bool = False

    @property
    def who(self) -> str:
        return f"rank {self.rank} (host {self.host})"

    def encode(self) -> str:
        return json.dumps(self)

    @classmethod
    def decode(cls, text: bytes) -> "Notice":
        rank, host, beat, place, *rest = json.loads(text)
        return cls(rank, host, beat, Place(*place), *rest)


class NoticeBoard:
    """The notices of all ranks. Making it is a collective; its methods wait as long as rank 0 is frozen."""

    def __init__(self) -> None:
        rank = distributed.rank()
        self.hosts: list[str] = distributed.gather_objects(socket.gethostname())
        self._store = _open_store()
        self._keys = [f"rank-{other}" for other in range(len(self.hosts))]
        self.post(Notice(rank, self.hosts[rank], beat=0))
        distributed.barrier()  # from here on there is a notice of every rank

    def post(self, notice: Notice) -> None:
        self._store.set(self._keys[notice.rank], notice.encode())

    def read(self, ranks: Sequence[int]) -> list[Notice]:
        return [Notice.decode(text) for text in self._store.multi_get([self._keys[rank] for rank in ranks])]


def _open_store() -> dist.TCPStore:
    timeout = timedelta(seconds=CONNECT_SECONDS)
    if distributed.is_main():
        store = dist.TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timeout)
        distributed.broadcast_object(store.port)
        return store
    address, port = distributed.main_address(), int(str(distributed.broadcast_object(None)))
    try:
        return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    except dist.DistError as error:
        raise TrainingError(
            f"rank {distributed.rank()} (host {socket.gethostname()}) cannot reach rank 0 at {address}, port {port} "
            f"({error}); ranks have to reach each other on every port"
        ) from error
