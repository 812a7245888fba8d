"""wandb's transaction log, `run-ID.wandb`: protobuf records in LevelDB's log format.

After a header of 7 bytes come blocks of 32 KiB (the header counts into the first). A record lies in one or more parts,
none of which crosses a block: crc32, length, kind (whole, first, middle, last), bytes. A rest of a block that is too
short for a part's own header is filled with zeros.
"""

import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from avff.errors import CheckpointError

logger = logging.getLogger(__name__)

HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK_BYTES = 32 * 1024
PART = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> list[Any]:
    """Returns wandb's records; the torn end that a kill leaves is left out, and so is what follows a damaged part.

    Raises:
        CheckpointError: not a file of wandb's, or of another version of its format.
    """
    content = path.read_bytes()
    if content and not content.startswith(HEADER):
        raise CheckpointError(f"{path}: begins with {content[:7]!r}, a transaction log of wandb with {HEADER!r}")
    return [new_record(record) for record in _records(content, path)]


def encode(records: Iterable[Any]) -> bytes:
    """Returns the content of a transaction log."""
    content = bytearray(HEADER)
    for record in records:
        _append(content, record.SerializeToString(deterministic=True))
    return bytes(content)


def new_record(encoded: bytes = b"") -> Any:
    """Returns a protobuf Record of wandb's, empty or decoded."""
    from wandb.proto import wandb_internal_pb2

    return vars(wandb_internal_pb2)["Record"].FromString(encoded)  # a class that exists from the import on only


def _records(content: bytes, path: Path) -> Iterator[bytes]:
    record = b""
    for kind, data in _parts(content, path):
        record = data if kind in (WHOLE, FIRST) else record + data
        if kind in (WHOLE, LAST):
            yield record


def _parts(content: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    position = len(HEADER)
    while position + PART.size <= len(content):
        if BLOCK_BYTES - position % BLOCK_BYTES < PART.size:
            position += BLOCK_BYTES - position % BLOCK_BYTES
            continue
        checksum, length, kind = PART.unpack_from(content, position)
        data = content[position + PART.size : position + PART.size + length]
        if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            logger.warning("%s: torn after %d of %d bytes", path, position, len(content))
            return
        yield kind, data
        position += PART.size + length


def _append(content: bytearray, record: bytes) -> None:
    starts = [0]
    free = BLOCK_BYTES - len(content) % BLOCK_BYTES
    if free < PART.size:
        content += bytes(free)
        free = BLOCK_BYTES
    end = free - PART.size
    while end < len(record):
        starts.append(end)
        end += BLOCK_BYTES - PART.size
    for number, (start, stop) in enumerate(pairwise([*starts, len(record)])):
        kind = _kind(is_first=number == 0, is_last=stop == len(record))
        data = record[start:stop]
        content += PART.pack(zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data


def _kind(*, is_first: bool, is_last: bool) -> int:
    if is_first:
        return WHOLE if is_last else FIRST
    return LAST if is_last else MIDDLE
