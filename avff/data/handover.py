"""Hands values with large arrays from one process to another without copying them twice.

    [head]                   pickle of (pickle of the value, sizes of its arrays)
    [array 0] [array 1] ...  each at a multiple of 64 bytes

A value lies in one anonymous file (memfd), whose descriptor travels in one message of a Unix socket. A message comes
whole or not at all, and an anonymous file goes when its last user does: a sender that is killed at any moment leaves
neither half a value nor anything in /dev/shm.

Linux limits open files twice here, both times by RLIMIT_NOFILE: a value that was received is an open file of its
receiver while it lives, and those on their way count for the user, over all processes of all ranks.
"""

import errno
import io
import itertools
import logging
import mmap
import os
import pickle
import resource
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from avff.errors import TrainingError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ALIGNMENT = 64
_MESSAGE = struct.Struct("q")  # bytes of the head
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


def send_value(connection: socket.socket, value: Any) -> None:
    """Sends anything that pickles; NumPy arrays and CPU tensors (of types that NumPy has) go outside of the pickle.

    Waits while too many values are on their way.
    """
    arrays: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=arrays.append).dump(value)
    contents = [bytes_of.raw() for bytes_of in arrays]
    head = pickle.dumps((stream.getvalue(), [len(content) for content in contents]))
    descriptor = _when_there_is_room(lambda: os.memfd_create("avff"))
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(head)
            for content in contents:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                file.write(content)
        _when_there_is_room(lambda: socket.send_fds(connection, [_MESSAGE.pack(len(head))], [descriptor]))
    finally:
        os.close(descriptor)


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


def receive_value(connection: socket.socket) -> Any:
    """Returns the next value, whose arrays may be written to.

    Raises:
        BlockingIOError: none is there now.
        EOFError: the other end is closed and everything that it sent has been received.
        TrainingError: this process may not open more files.
    """
    try:
        # socket.recv_fds would do, but it ignores its flags.
        message, ancillary, _, _ = connection.recvmsg(
            _MESSAGE.size, socket.CMSG_LEN(_DESCRIPTOR.size), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError as error:  # closed without having read what this end sent
        raise EOFError from error
    if not message:
        raise EOFError
    if not ancillary:
        raise TrainingError(
            f"this process has as many open files as it may, {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, and every "
            "step read ahead is one; raise the limit (ulimit -n) or lower data.prefetch_steps or data.num_workers"
        )
    (descriptor,) = _DESCRIPTOR.unpack(ancillary[0][2])
    try:
        memory = memoryview(mmap.mmap(descriptor, 0))
    finally:
        os.close(descriptor)
    head_bytes = _MESSAGE.unpack(message)[0]
    pickled, sizes = pickle.loads(memory[:head_bytes])
    return pickle.loads(pickled, buffers=_split(memory, head_bytes, sizes))


def _split(memory: memoryview, head_bytes: int, sizes: Sequence[int]) -> list[memoryview]:
    parts: list[memoryview] = []
    start = head_bytes
    for size in sizes:
        start += -start % _ALIGNMENT
        parts.append(memory[start : start + size])
        start += size
    return parts


class _Pickler(pickle.Pickler):
    """Sends tensors as NumPy arrays, since torch's own pickle holds a copy of the content."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented
