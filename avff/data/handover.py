"""Hands values with large arrays from one process to another without copying them twice.

    [head]                   pickle of (pickle of the value, sizes of its arrays)
    [array 0] [array 1] ...  each at a multiple of 64 bytes

A value lies in one anonymous file (memfd), whose descriptor travels in one message of a Unix socket. A message comes
whole or not at all, and an anonymous file goes when its last user does: a sender that is killed at any moment leaves
neither half a value nor anything in /dev/shm.
"""

import io
import mmap
import os
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any

import torch

_ALIGNMENT = 64
_MESSAGE = struct.Struct("q")  # bytes of the head
_DESCRIPTOR = struct.Struct("i")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Returns two ends that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_value(connection: socket.socket, value: Any) -> None:
    """Sends anything that pickles; NumPy arrays and CPU tensors (of types that NumPy has) go outside of the pickle."""
    arrays: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=arrays.append).dump(value)
    contents = [bytes_of.raw() for bytes_of in arrays]
    head = pickle.dumps((stream.getvalue(), [len(content) for content in contents]))
    descriptor = os.memfd_create("avff")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(head)
            for content in contents:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                file.write(content)
        socket.send_fds(connection, [_MESSAGE.pack(len(head))], [descriptor])
    finally:
        os.close(descriptor)


def receive_value(connection: socket.socket) -> Any:
    """Returns the next value, whose arrays may be written to.

    Raises:
        BlockingIOError: none is there now.
        EOFError: the other end is closed and everything that it sent has been received.
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
