"""Processes that read ahead and may be killed at any moment: results come in order and do not depend on them.

    parent --- item, condemned places ---> worker w of n: items w, w + n, w + 2n, ...
    parent <-- results, in that order ---- worker          (avff.data.handover)
    parent <-- what is being read now ---- worker          (Slot)

A worker that dies is replaced and its items are done again; one that makes no progress for `timeout_seconds` is killed.
The place that it was reading then is tried once more. If that ends the next worker too, the place is condemned:
`Slot.reading` raises ReadError for it, and the job decides what that means. KILL comes from outside (an operator, the
kernel when memory runs out), so it takes more of them to condemn a place.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from avff.data.handover import Receiver, allow_many_files, socket_pair
from avff.data.worker_process import SIGNALS, Failure, Job, Place, Slot, run_worker, task_message
from avff.errors import TrainingError

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
_LONGEST_TICK_SECONDS = 2.0
"""A longer pause is a suspended machine, in which the workers could not read either."""
_REAP_SECONDS = 5.0
_MAX_ATTEMPTS = 2
_MAX_KILLS = 4
_MAX_DEATHS = 5


def read_in_order(
    job: Job, items: Sequence[int], *, num_workers: int, prefetch: int, timeout_seconds: float
) -> Generator[Any, None, None]:
    """Yields `job(item, slot)` for every item, in order.

    Workers are forked at the first `next` and killed by `close`, at the end, and when this process or thread ends. This
    process's limit of open files is raised as far as it may be.

    Args:
        num_workers: processes; 0 reads in this one, where no time-out is possible. No effect on what comes.
        prefetch: items that each worker works on ahead; at most 100, since a socket holds some 200 messages, and one more
            would make this process wait for a worker that may hang.
        timeout_seconds: longest that one reading may take.

    Raises:
        AvffError: raised by the job.
        RuntimeError: the job raised anything else; the message holds its traceback.
        TrainingError: workers keep dying and no sample is to blame.
    """
    if num_workers == 0:
        slot = Slot()
        for item in items:
            yield job(item, slot)
        return
    allow_many_files()
    pool = _Pool(job, timeout_seconds)
    try:
        yield from pool.results(items, min(num_workers, len(items)), prefetch)
    finally:
        pool.close()


class _Pool:
    def __init__(self, job: Job, timeout_seconds: float):
        self.job = job
        self.timeout_seconds = timeout_seconds
        self.workers: list[_Worker] = []
        self.owner = os.getpid()

    def results(self, items: Sequence[int], num_workers: int, prefetch: int) -> Generator[Any, None, None]:
        for number in range(num_workers):
            self.workers.append(_Worker(number))
            self._start(self.workers[number])
        num_ahead = num_workers * prefetch
        for number, item in enumerate(items[:num_ahead]):
            self.workers[number % num_workers].ask(item)
        for number in range(len(items)):
            worker = self.workers[number % num_workers]
            result = self._next_of(worker)
            if number + num_ahead < len(items):
                worker.ask(items[number + num_ahead])
            yield result

    def close(self) -> None:
        if os.getpid() != self.owner:  # a fork that inherited this pool
            return
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.reap()
            worker.connection.close()

    def _start(self, worker: "_Worker") -> None:
        others = [other.connection for other in self.workers if other is not worker]
        worker.start(self.job, others)

    def _next_of(self, worker: "_Worker") -> Any:
        """Waits for a worker's next result and looks after all of them meanwhile."""
        longest = min(_LONGEST_TICK_SECONDS, self.timeout_seconds / 4)
        before = time.monotonic()
        while not worker.results:
            worker.wait(min(_TICK_SECONDS, longest))
            now = time.monotonic()
            for each in self.workers:
                self._look_after(each, min(now - before, longest))
            before = now
        result = worker.results.popleft()
        if isinstance(result, Failure):
            raise result.error
        return result

    def _look_after(self, worker: "_Worker", elapsed_seconds: float) -> None:
        if not worker.receive():
            worker.kill()
            status = worker.reap()
            self._replace(worker, _end_of(status), killed=status == signal.SIGKILL)
        elif worker.stalled_seconds(elapsed_seconds) > self.timeout_seconds:
            worker.kill()
            worker.reap()
            worker.receive()
            self._replace(worker, f"took longer than {self.timeout_seconds:g} s", killed=False)

    def _replace(self, worker: "_Worker", fault: str, *, killed: bool) -> None:
        """Starts a new process for a dead one, and finds out what killed it."""
        place = worker.slot.place
        worker.blame(place, fault, max_attempts=_MAX_KILLS if killed else _MAX_ATTEMPTS)
        logger.warning(
            "data worker %d (process %d) %s %s; it is replaced",
            worker.number,
            worker.pid,
            fault,
            f"while reading {place.where}" if place else "between two samples",
        )
        if worker.num_deaths >= _MAX_DEATHS:
            raise TrainingError(
                f"data worker {worker.number} could not finish its work in {_MAX_DEATHS} attempts; in the last, it {fault}. "
                "SIGKILL mostly means that memory ran out: lower data.num_workers, data.prefetch_steps or "
                "engine.micro_batch_size"
            )
        worker.connection.close()
        self._start(worker)


class _Worker:
    """One worker as its parent sees it; outlives its processes.

    Attributes:
        results: received and not yet delivered, in order.
        num_deaths: since the last result or verdict.
    """

    def __init__(self, number: int):
        self.number = number
        self.pid = 0
        self.results: deque[Any] = deque()
        self.num_deaths = 0
        self.slot: Slot
        self.connection: socket.socket
        self._receiver: Receiver
        self._is_running = False
        self._asked: deque[int] = deque()
        self._faults: dict[Place, list[str]] = {}
        self._condemned: dict[Place, str] = {}
        self._progress = (-1, 0)
        self._stalled_seconds = 0.0

    def start(self, job: Job, others: Sequence[socket.socket]) -> None:
        """Forks a process and asks it for everything that the one before it left undone."""
        self.slot = Slot()  # a new one: a process that could not be killed would go on writing to the old
        self.connection, far_end = socket_pair()
        self._receiver = Receiver(self.connection)
        parent = os.getpid()
        # A handler that raises in the child before it ignores signals would let it run on as a second parent.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                inherited = [self.connection, *others]
                run_worker(job, self.number, far_end, self.slot, parent=parent, signal_mask=mask, inherited=inherited)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._is_running = True
        far_end.close()
        for item in self._asked:
            self._send(item)

    def ask(self, item: int) -> None:
        self._asked.append(item)
        self._send(item)

    def _send(self, item: int) -> None:
        released = self._receiver.released
        message = task_message(item, self._condemned, [released.popleft() for _ in range(len(released))])
        # A dead worker is found out when it is listened to; its successor is asked again.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def wait(self, seconds: float) -> None:
        """Waits until the process says something or ends."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        poll.poll(seconds * 1000)

    def receive(self) -> bool:
        """Takes in every result that has come; returns whether the process still lives."""
        while True:
            try:
                self.results.append(self._receiver.receive())
            except BlockingIOError:
                return True
            except EOFError:
                return False
            self._asked.popleft()
            self._faults.clear()
            self._condemned.clear()
            self.num_deaths = 0

    def stalled_seconds(self, elapsed_seconds: float) -> float:
        """Returns for how long nothing has moved, counting the time just elapsed."""
        progress = (self.slot.serial, len(self._asked))
        if progress != self._progress or not self._asked:
            self._progress, self._stalled_seconds = progress, 0.0
        else:
            self._stalled_seconds += elapsed_seconds
        return self._stalled_seconds

    def blame(self, place: Place | None, fault: str, *, max_attempts: int) -> None:
        """Notes what the process did while reading a place, and condemns a place that had its attempts."""
        self.num_deaths += 1
        if place is None:
            return
        faults = self._faults.setdefault(place, [])
        faults.append(fault)
        if len(faults) >= max_attempts:
            self._condemned[place] = f"its worker {' and '.join(dict.fromkeys(faults))} in {len(faults)} attempts"
            self.num_deaths = 0

    def kill(self) -> None:
        if self._is_running:  # else the number may be another process's by now
            os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """Returns the wait status of the killed process; None if it does not end, which a lost disk can bring about."""
        deadline = time.monotonic() + _REAP_SECONDS
        while self._is_running and time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._is_running = False
                return status
            time.sleep(0.002)
        if self._is_running:
            logger.warning("data worker %d (process %d) cannot be killed; it is left behind", self.number, self.pid)
        return None


def _end_of(status: int | None) -> str:
    if status is None:
        return "ended"
    if os.WIFSIGNALED(status):
        return f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with code {os.WEXITSTATUS(status)}"
