"""The inside of a data worker: a forked process that reads item after item until its parent closes the connection."""

import contextlib
import ctypes
import gc
import mmap
import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch

from avff.data.handover import Sender
from avff.errors import AvffError, ReadError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What a worker does not heed."""

# Looked up here and not in the fork: there, the dynamic linker's lock may be held by a thread that was not forked along.
_LIBC = ctypes.CDLL(None)
_PRCTL = _LIBC.prctl
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_MALLOPT = getattr(_LIBC, "mallopt", None)  # glibc's
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1
_SLOT_BYTES = 1 << 14  # a path has up to 4096 bytes
_TASK_BYTES = 1 << 17
_SERIAL = struct.Struct("q")


class Place(NamedTuple):
    """One sample at one place of what a job reads.

    Attributes:
        position: of the clip on the plan's line, or of the sample in a list.
        attempt: 0 for the planned sample, then its substitutes.
        where: path of the tar and key, for messages.
    """

    position: int
    attempt: int
    where: str


class Slot:
    """What a process is reading now, in memory that its parent sees too.

    Attributes:
        condemned: places that are not to be read again, each with the reason.
    """

    def __init__(self) -> None:
        self.condemned: Mapping[Place, str] = {}
        self._memory = mmap.mmap(-1, _SLOT_BYTES)

    @contextlib.contextmanager
    def reading(self, place: Place) -> Iterator[None]:
        """Marks the block that reads and decodes one sample.

        Raises:
            ReadError: the place is condemned.
        """
        if place in self.condemned:
            raise ReadError(f"{place.where}: {self.condemned[place]}")
        content = pickle.dumps(place)
        self._memory[_SERIAL.size : _SERIAL.size + len(content)] = content
        self._write_serial(self.serial + 1)
        try:
            yield
        finally:
            self._write_serial(self.serial + 1)

    @property
    def serial(self) -> int:
        """Grows when reading begins and when it ends; odd in between."""
        return _SERIAL.unpack_from(self._memory)[0]

    @property
    def place(self) -> Place | None:
        """What is being read; ask once the process is dead."""
        return pickle.loads(self._memory[_SERIAL.size :]) if self.serial % 2 else None

    def _write_serial(self, serial: int) -> None:
        _SERIAL.pack_into(self._memory, 0, serial)


Job = Callable[[int, Slot], Any]
"""Reads one item, and each of its samples inside `Slot.reading`."""


class Failure(NamedTuple):
    """What a job raised, for the parent to raise."""

    error: Exception


def task_message(item: int, condemned: Mapping[Place, str], released: Sequence[int]) -> bytes:
    """Returns the message that asks a worker for an item and gives files back, see `Receiver.released`."""
    return pickle.dumps((item, condemned, released))


def run_worker(
    job: Job,
    number: int,
    connection: socket.socket,
    slot: Slot,
    *,
    parent: int,
    signal_mask: set,
    inherited: Sequence[socket.socket],
) -> NoReturn:
    """Serves until the connection closes, then ends the process without touching what it was forked with.

    Args:
        parent: process number.
        signal_mask: the parent's, which blocks SIGNALS while it forks.
        inherited: ends of other workers' connections, which only the parent may hold.
    """
    try:
        _settle(number, parent, signal_mask)
        for end in inherited:
            end.close()
        sender = Sender(connection)
        while task := connection.recv(_TASK_BYTES):
            item, slot.condemned, released = pickle.loads(task)
            sender.reuse(released)
            _answer(job, item, sender, slot)
        os._exit(0)
    except BaseException:  # noqa: BLE001  the process ends here, whatever it was
        traceback.print_exc()
    finally:
        os._exit(1)


def _answer(job: Job, item: int, sender: Sender, slot: Slot) -> None:
    try:
        sender.send(job(item, slot))
    except AvffError as error:
        sender.send(Failure(error))
    except Exception:  # noqa: BLE001  raised by the parent
        text = f"reading item {item} failed in a data worker:\n{traceback.format_exc()}"
        sender.send(Failure(RuntimeError(text)))


def _settle(number: int, parent: int, signal_mask: set) -> None:
    """Makes a fork of a training process fit for reading."""
    # First of all: the collector would write to, and so copy, every page of the plan's millions of rows, and end objects
    # of the parent whose threads are not here.
    gc.freeze()
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)
    # Signals go to the whole process group; the training process decides what they mean and ends its workers by KILL.
    for signal_number in SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
    _PRCTL(_PR_SET_NAME, f"avff-data-{number}".encode())
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    if _MALLOPT:
        # Every sample needs the same large arrays again. By default each would be new memory, which the kernel has to make
        # and clear page by page: a tenth of a worker's time.
        _MALLOPT(_M_MMAP_MAX, 0)
        _MALLOPT(_M_TRIM_THRESHOLD, _LARGEST_INT)
