"""A file of JSON lines that a run appends to, and that a full disk, a crash and a resume leave whole."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from avff.files import sync
from avff.json_lines import parse

logger = logging.getLogger(__name__)


class AppendLog:
    """Appends records as JSON lines.

    What the disk refuses waits in memory and goes out with the next lines, in order: a full disk neither ends a run
    nor loses a line. `make_durable` is where it becomes an error, so that no checkpoint is younger than its lines.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._waiting = b""

    def append(self, records: Iterable[dict[str, Any]], *, durable: bool = False) -> None:
        """Adds lines; with `durable` they are on the disk when this returns, if the disk takes them."""
        self._waiting += b"".join(json.dumps(record).encode() + b"\n" for record in records)
        try:
            self._write()
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            logger.warning("%s: %s; what is not on the disk yet goes out with the next lines", self.path, error)

    def make_durable(self) -> None:
        """Waits until every line is on the disk.

        Raises:
            OSError: the disk takes no more; the lines go on waiting.
        """
        self._write()
        os.fsync(self._descriptor)

    def rewind(self, step: int) -> None:
        """Removes every line after a step, those that wait included."""
        self._waiting = b""
        truncate(self.path, step)

    def close(self) -> None:
        """Raises OSError where lines are still waiting and cannot be written."""
        self.make_durable()
        os.close(self._descriptor)

    def _write(self) -> None:
        size = os.fstat(self._descriptor).st_size
        written = 0
        try:
            while written < len(self._waiting):
                written += os.write(self._descriptor, self._waiting[written:])
        except OSError:
            os.ftruncate(self._descriptor, size)  # half a line would spoil the next one
            raise
        self._waiting = b""


def truncate(path: Path, resume_step: int | None = None) -> None:
    """Removes a torn end and, given a step, every line from the first one on whose `step` is after it.

    In place, since that needs no room on a full disk: a file that is only appended to loses nothing but its end.
    """
    if not path.is_file():
        return
    size = 0
    for record, stop in parse(path):
        if resume_step is not None and record["step"] > resume_step:
            break
        size = stop
    if size < path.stat().st_size:
        os.truncate(path, size)
        sync(path)
