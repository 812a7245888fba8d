"""Threads that help to read one file; what comes does not depend on their number.

Decoders, scalers, encoders and torch let other threads run while they work, so that one process keeps several cores busy:

    looking:  decode ahead, one segment in advance | helpers: faces in each batch of pictures
    cutting:  decode and encode, in order          | helpers: crops of each picture
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")
_END: Any = object()
_WAITING_PER_THREAD = 2


class Helpers:
    """A pool of threads, or with 0 of them the caller's own thread under the same interface.

    Raises:
        ValueError: threads were asked for, and torch would use more than one in each of them: the last bits of a
            convolution depend on that number.
    """

    def __init__(self, num_threads: int):
        if num_threads and torch.get_num_threads() != 1:
            raise ValueError(
                f"torch computes on {torch.get_num_threads()} threads; call torch.set_num_threads(1) in a process whose "
                f"files are read by {num_threads} helpers"
            )
        self._num_waiting = _WAITING_PER_THREAD * num_threads
        self._pool = ThreadPoolExecutor(num_threads) if num_threads else None

    def __enter__(self) -> "Helpers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Out], *arguments: Any) -> "Future[Out]":
        """Has a function called, at once where there are no threads."""
        if self._pool is not None:
            return self._pool.submit(function, *arguments)
        done: Future[Out] = Future()
        done.set_result(function(*arguments))
        return done

    def map(self, function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """Yields `function(item)` in order; few items are read ahead."""
        waiting: deque[Future[Out]] = deque()
        for item in items:
            waiting.append(self.submit(function, item))
            if len(waiting) > self._num_waiting:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()

    @contextlib.contextmanager
    def one_ahead(self, items: Iterator[Out]) -> Iterator[Iterator[Out]]:
        """Gives the same items, each of which a thread of its own makes while the one before it is used."""
        if self._pool is None:
            yield items
            return
        with ThreadPoolExecutor(1) as thread:
            yield _from_thread(items, thread)


def _from_thread(items: Iterator[Out], thread: ThreadPoolExecutor) -> Iterator[Out]:
    coming = thread.submit(next, items, _END)
    while (item := coming.result()) is not _END:
        coming = thread.submit(next, items, _END)
        yield item
