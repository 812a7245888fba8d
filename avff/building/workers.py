"""Worker processes of a build: they take tasks, yield parts in order, and never outlive or hold up their parent."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from avff.building.parts import Part, Task, begun_parts, build_part
from avff.errors import MediaError

PARENTS_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""A terminal and SLURM send them to workers too; what they ask for is the parent's to decide."""
SIGNAL_MARGIN_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asked to stop; the message is its name."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raises Stopped on the first TERM, USR1 or USR2, as schedulers send before they kill, and ignores those after it."""

    def stop(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def run_in(num_workers: int) -> Iterator[Callable[[list[Task]], Iterator[Part]]]:
    """Gives a function that runs tasks and yields their parts in order; 0 workers: in this process.

    Leaving by an exception kills the workers at once: what they had begun is built again, and nothing waits for them.

    Raises:
        MediaError: a worker died; names the sources that were being read.
    """
    if num_workers == 0:
        yield lambda tasks: map(build_part, tasks)
        return
    # spawn: a forked copy of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    level = logging.getLogger().getEffectiveLevel()
    others = set(multiprocessing.active_children())
    with _children_leave_signals_to_us():  # here multiprocessing starts a process of its own
        executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(level,))
    given: list[Task] = []

    def run_all(tasks: list[Task]) -> Iterator[Part]:
        given.extend(tasks)
        with _children_leave_signals_to_us():  # and here the workers
            return executor.map(build_part, tasks)

    try:
        yield run_all
    except BrokenProcessPool as error:
        # A TERM for the whole group may have reached a worker first; ours ends this sleep.
        time.sleep(SIGNAL_MARGIN_SECONDS)
        raise _worker_died(given) from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _children_leave_signals_to_us() -> Iterator[None]:
    """Blocks signals that concern this process alone; what is started in the block inherits that for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker_died(tasks: list[Task]) -> MediaError:
    begun = begun_parts(tasks[0].directory) if tasks else set()
    names = ", ".join(task.source.name for task in tasks if task.number in begun)
    return MediaError(
        f"a worker process died, killed for its memory or by a crash inside a decoder, while these were read: "
        f"{names or 'unknown'}; run the same command again to continue, with fewer --num-workers if memory is short "
        "(1 worker tells which file it is)",
        reason="WORKER_DIED",
    )


def _start_worker(log_level: int) -> None:
    """Makes a worker log as its parent does, and end with it: a parent that is killed cannot say so."""
    logging.basicConfig(level=log_level, format="%(message)s")

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
