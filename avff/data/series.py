"""Several values per item from worker processes, as they come: what `avff.data.workers` does for one value per item.

A worker works on one series at a time and is asked for a few of its values ahead; who finishes a series takes the next.
Its process may be killed at any moment: the one after it is asked for the same numbers again.
"""

import itertools
import select
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from avff.data.handover import allow_many_files
from avff.data.worker_process import Failure, Slot
from avff.data.workers import _LONGEST_TICK_SECONDS, _TICK_SECONDS, _Pool, _Worker

_LONGEST_SERIES = 1 << 32


class SeriesValue(NamedTuple):
    """
    Attributes:
        series: its number.
        value: None where the series has ended.
    """

    series: int
    value: Any


SeriesJob = Callable[[int, int, Slot], Any]
"""From series and number of a value in it to the value, read inside `Slot.reading`; None after the last.

Numbers come in order, but a process may be asked to begin with any, and for one or two beyond the end.
"""


def read_series(
    job: SeriesJob, num_series: int, *, num_workers: int, prefetch: int, timeout_seconds: float
) -> Generator[SeriesValue, None, None]:
    """Yields the values of every series in order and then its end; series begin in order and overlap.

    Args:
        num_workers: processes; 0 reads in this one, where no time-out is possible and series do not overlap.
        prefetch: values that each worker works on ahead.
        timeout_seconds: longest that one reading may take.

    Raises:
        AvffError: raised by the job.
        RuntimeError: the job raised anything else; the message holds its traceback.
        TrainingError: workers keep dying and nothing that they read is to blame.
    """
    if num_workers == 0:
        yield from _read_here(job, num_series)
        return
    allow_many_files()
    pool = _SeriesPool(lambda item, slot: job(*divmod(item, _LONGEST_SERIES), slot), timeout_seconds)
    try:
        yield from pool.values(num_series, min(num_workers, num_series), prefetch)
    finally:
        pool.close()


def _read_here(job: SeriesJob, num_series: int) -> Iterator[SeriesValue]:
    slot = Slot()
    for series in range(num_series):
        for number in itertools.count():
            value = job(series, number, slot)
            yield SeriesValue(series, value)
            if value is None:
                break


class _Reader:
    """A worker and the series that it is at.

    Attributes:
        series: None while it has nothing to do.
        asked: series of each value that was asked for and has not been delivered.
    """

    def __init__(self, worker: _Worker):
        self.worker = worker
        self.series: int | None = None
        self.asked: deque[int] = deque()
        self._next_number = 0

    def begin(self, series: int, prefetch: int) -> None:
        self.series, self._next_number = series, 0
        for _ in range(prefetch):
            self.ask()

    def ask(self) -> None:
        assert self.series is not None
        self.asked.append(self.series)
        self.worker.ask(self.series * _LONGEST_SERIES + self._next_number)
        self._next_number += 1


class _SeriesPool(_Pool):
    def values(self, num_series: int, num_workers: int, prefetch: int) -> Iterator[SeriesValue]:
        for number in range(num_workers):
            self.workers.append(_Worker(number))
            self._start(self.workers[number])
        readers = [_Reader(worker) for worker in self.workers]
        waiting = iter(range(num_series))
        for reader, series in zip(readers, waiting):  # noqa: B905  there may be more series than readers
            reader.begin(series, prefetch)
        while any(reader.series is not None for reader in readers):
            self._wait()
            for reader in readers:
                yield from self._delivered(reader, waiting, prefetch)

    def _delivered(self, reader: _Reader, waiting: Iterator[int], prefetch: int) -> Iterator[SeriesValue]:
        """Yields what a worker has sent, and asks it for more."""
        while reader.worker.results:
            value, series = reader.worker.results.popleft(), reader.asked.popleft()
            if isinstance(value, Failure):
                raise value.error
            if series != reader.series:  # asked for beyond the end
                continue
            if value is not None:
                reader.ask()
            else:
                reader.series = next(waiting, None)
                if reader.series is not None:
                    reader.begin(reader.series, prefetch)
            yield SeriesValue(series, value)

    def _wait(self) -> None:
        """Waits until a worker has sent something, and looks after all of them meanwhile."""
        longest = min(_LONGEST_TICK_SECONDS, self.timeout_seconds / 4)
        before = time.monotonic()
        while not any(worker.results for worker in self.workers):
            poll = select.poll()
            for worker in self.workers:
                poll.register(worker.connection, select.POLLIN)
            poll.poll(min(_TICK_SECONDS, longest) * 1000)
            now = time.monotonic()
            for worker in self.workers:
                self._look_after(worker, min(now - before, longest))
            before = now
