"""Hands values with large arrays from one process to another, in memory that is used again and again.

    [head]                   pickle of (pickle of the value, sizes of its arrays)
    [array 0] [array 1] ...  each at a multiple of 64 bytes

A value lies in one anonymous file (memfd) that both processes map: the sender copies it in, the receiver reads it where
it lies. Once nothing of a value is left at the receiver, it tells the sender (`Receiver.released`), and the file carries
another value: its pages exist already, and to let the kernel make and clear new ones would cost several times the copy.
A new file's descriptor travels in the message of its first value. A message comes whole or not at all, and an anonymous
file goes when its last user does: a sender that is killed at any moment leaves neither half a value nor anything in
/dev/shm.

Linux limits open files by RLIMIT_NOFILE, also those on their way, which count for the user over all processes of all
ranks. Mapped files are not open ones.
"""

import errno
import io
import itertools
import logging
import os
import pickle
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from avff.data.reused_memory import lend
from avff.errors import TrainingError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ALIGNMENT = 64
_MESSAGE = struct.Struct("qq")  # number of the file, bytes of the head
_DESCRIPTOR = struct.Struct("i")
_FULL = (errno.ETOOMANYREFS, errno.ENFILE)
"""Too many descriptors of this user on their way, too many open files on this machine: others can end both."""
_RETRY_SECONDS = 0.02
_RETRIES_BEFORE_WARNING = 500


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Returns two ends that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def allow_many_files() -> None:
    """Raises this process's limit of open files as far as it may; processes that it forks inherit that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Sender:
    """The end of a connection that values come from; keeps the files that it made."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._files: list[np.ndarray] = []
        self._free: list[int] = []

    def send(self, value: Any) -> None:
        """Sends anything that pickles; NumPy arrays and CPU tensors (of types that NumPy has) go outside of the pickle.

        Waits while too many values are on their way.
        """
        arrays: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=arrays.append).dump(value)
        contents = [bytes_of.raw() for bytes_of in arrays]
        sizes = [len(content) for content in contents]
        head = pickle.dumps((stream.getvalue(), sizes))
        ranges = _ranges(len(head), sizes)
        number = self._free_file(ranges[-1].stop if ranges else len(head))
        if number is not None:
            _fill(self._files[number], head, contents, ranges)
            self._connection.send(_MESSAGE.pack(number, len(head)))
            return
        number = self._free.pop() if self._free else len(self._files)
        self._send_in_new_file(number, head, contents, ranges)

    def reuse(self, numbers: Iterable[int]) -> None:
        """Takes files back that `Receiver.released` names."""
        self._free += numbers

    def _free_file(self, size: int) -> int | None:
        """Takes the file last given back that holds `size` bytes."""
        for index in reversed(range(len(self._free))):
            if len(self._files[self._free[index]]) >= size:
                return self._free.pop(index)
        return None

    def _send_in_new_file(self, number: int, head: bytes, contents: list[memoryview], ranges: list[slice]) -> None:
        """Sends in a file that is made for it, under a new number or in place of one that is too small."""
        descriptor = _when_there_is_room(lambda: os.memfd_create("avff"))
        try:
            os.ftruncate(descriptor, ranges[-1].stop if ranges else len(head))
            self._files[number : number + 1] = [_mapped(descriptor)]
            _fill(self._files[number], head, contents, ranges)
            message = [_MESSAGE.pack(number, len(head))]
            _when_there_is_room(lambda: socket.send_fds(self._connection, message, [descriptor]))
        finally:
            os.close(descriptor)


class Receiver:
    """The end of a connection that values come to.

    Attributes:
        released: numbers of files of which nothing is in use any more, for the sender to use again; take them off.
    """

    def __init__(self, connection: socket.socket):
        self.released: deque[int] = deque()
        self._connection = connection
        self._files: dict[int, np.ndarray] = {}

    def receive(self) -> Any:
        """Returns the next value, whose arrays may be written to.

        Raises:
            BlockingIOError: none is there now.
            EOFError: the other end is closed and everything that it sent has been received.
            TrainingError: this process may not open more files.
        """
        try:
            # socket.recv_fds would do, but it ignores its flags.
            message, ancillary, flags, _ = self._connection.recvmsg(
                _MESSAGE.size, socket.CMSG_LEN(_DESCRIPTOR.size), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError as error:  # closed without having read what this end sent
            raise EOFError from error
        if not message:
            raise EOFError
        if flags & socket.MSG_CTRUNC:
            raise TrainingError(
                f"this process has as many open files as it may, {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}; raise "
                "the limit (ulimit -n)"
            )
        number, head_bytes = _MESSAGE.unpack(message)
        if ancillary:
            (descriptor,) = _DESCRIPTOR.unpack(ancillary[0][2])
            try:
                self._files[number] = _mapped(descriptor)
            finally:
                os.close(descriptor)
        return self._read(number, head_bytes)

    def _read(self, number: int, head_bytes: int) -> Any:
        memory = lend(self._files[number], lambda: self.released.append(number))
        pickled, sizes = pickle.loads(memory[:head_bytes])
        return pickle.loads(pickled, buffers=[memory[part] for part in _ranges(head_bytes, sizes)])


def _mapped(descriptor: int) -> np.ndarray:
    """Maps a whole file, shared and writable, as uint8; unlike Python's mmap, torch keeps no descriptor of its own."""
    size = os.fstat(descriptor).st_size
    return torch.from_file(f"/proc/self/fd/{descriptor}", shared=True, size=size, dtype=torch.uint8).numpy()


def _fill(file: np.ndarray, head: bytes, contents: list[memoryview], ranges: list[slice]) -> None:
    file[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    for content, part in zip(contents, ranges, strict=True):
        file[part] = np.frombuffer(content, dtype=np.uint8)


def _ranges(head_bytes: int, sizes: Sequence[int]) -> list[slice]:
    """Returns where the arrays lie."""
    parts: list[slice] = []
    start = head_bytes
    for size in sizes:
        start += -start % _ALIGNMENT
        parts.append(slice(start, start + size))
        start += size
    return parts


def _when_there_is_room(act: Callable[[], T]) -> T:
    """Does what the system refuses while too many files are open or on their way."""
    for attempt in itertools.count():
        try:
            return act()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if attempt == _RETRIES_BEFORE_WARNING:
                logger.warning(
                    "process %d waits to hand over what it has read: %s; raise the limit of open files (ulimit -n), which "
                    "is %d here, or lower data.prefetch_steps or data.num_workers",
                    os.getpid(),
                    error.strerror,
                    resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                )
        time.sleep(_RETRY_SECONDS)
    raise AssertionError("counts for ever")


class _Pickler(pickle.Pickler):
    """Sends tensors as NumPy arrays, since torch's own pickle holds a copy of the content."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented
