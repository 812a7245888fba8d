"""Files that appear whole or not at all and outlast a crash, and their checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file; after a crash either the old or the new content is there, on the disk once this returns."""
    with durable(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write; at the end of the block its content replaces `path`, and is on the disk.

    Raises:
        OSError: names `path`, also where the system names no file, as when the disk is full.
    """
    # The process number keeps two writers of one path from renaming each other's half.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
