"""Files of JSON lines that a process may be appending to, or died while appending to."""

import json
from pathlib import Path
from typing import Any

from avff.errors import CheckpointError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a file, nothing where there is none; a torn end is left out.

    Raises:
        CheckpointError: a line within the file is not JSON, which no crash leaves behind.
    """
    return [record for record, _ in parse(path)]


def parse(path: Path) -> list[tuple[dict[str, Any], int]]:
    """Returns (record, where its line stops in bytes); after a power loss a torn end can be any bytes, such as zeros.

    Raises:
        CheckpointError: as `read_lines`.
    """
    found: list[tuple[dict[str, Any], int]] = []
    stop = 0
    bad_line = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], 1):
        stop += len(line)
        record = _record(line)
        if record is None:
            bad_line = bad_line or number
        elif bad_line:
            raise CheckpointError(f"{path}: line {bad_line} is not JSON, and good lines follow it; repair it by hand")
        else:
            found.append((record, stop))
    return found


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
