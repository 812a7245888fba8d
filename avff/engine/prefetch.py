"""Moves batches to the device while it computes.

A loader hands over page-locked memory. From there a GPU fetches the next micro batch on a stream of its own while the
present one is computed; the first of the next step is fetched while the device still works off this step
(`LookAhead.look_ahead`, called before the step's one wait for the device). On a CPU batches pass through.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from avff.batch import AVBatch
from avff.data.stream import StepBatch
from avff.errors import AvffError


def move(batch: AVBatch, device: torch.device) -> AVBatch:
    """Returns the batch with its tensors on the device."""
    moved: dict[str, Any] = {
        name: value.to(device, non_blocking=True)
        for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    }
    return batch._replace(**moved)


class DevicePrefetcher:
    """Brings micro batches to the device, at most one ahead of what is computed.

    Attributes:
        overlaps: copies run while the device computes.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.overlaps = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.overlaps else None
        self._staged: tuple[AVBatch, AVBatch] | None = None

    def stage(self, batch: AVBatch) -> None:
        """Begins to copy a batch, in place of any other that was begun and not taken."""
        if self._stream is None:
            return
        with torch.cuda.stream(self._stream):
            self._staged = batch, move(batch, self.device)

    def take(self, batches: Sequence[AVBatch], index: int) -> AVBatch:
        """Returns a batch on the device, for use on the present stream, and begins to copy the one after it."""
        batch = batches[index]
        if self._stream is None:
            return move(batch, self.device)
        if self._staged is None or self._staged[0] is not batch:
            self.stage(batch)
        assert self._staged
        moved, self._staged = self._staged[1], None
        present = torch.cuda.current_stream(self.device)
        present.wait_stream(self._stream)
        for value in moved:
            if isinstance(value, Tensor):
                value.record_stream(present)  # else the copies' stream would use its memory again too early
        if index + 1 < len(batches):
            self.stage(batches[index + 1])
        return moved


class LookAhead(Iterator[StepBatch]):
    """Passes steps on as they come, and fetches the next one early where that costs nothing.

    Attributes:
        idle_seconds: that fetching the next step early took, where the device was done before it; else 0. At most so
            long it had nothing to do.
    """

    def __init__(self, steps: Iterator[StepBatch], prefetcher: DevicePrefetcher):
        self.idle_seconds = 0.0
        self._steps = steps
        self._prefetcher = prefetcher
        self._next: StepBatch | AvffError | None = None

    def look_ahead(self) -> None:
        """Fetches the next step, if there is one, and begins to copy its first micro batch; nothing on a CPU."""
        self.idle_seconds = 0.0
        if not self._prefetcher.overlaps or self._next is not None:
            return
        computed = torch.cuda.Event()
        computed.record(torch.cuda.current_stream(self._prefetcher.device))
        start = time.monotonic()
        try:
            self._next = next(self._steps, None)
        except AvffError as error:  # raised in its turn: the present step can be finished
            self._next = error
        if computed.query():
            self.idle_seconds = time.monotonic() - start
        if isinstance(self._next, StepBatch):
            self._prefetcher.stage(self._next.micro_batches[0])

    def __next__(self) -> StepBatch:
        found, self._next = self._next, None
        if isinstance(found, AvffError):
            raise found
        return next(self._steps) if found is None else found
