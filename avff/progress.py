"""Progress of long work: a bar on a terminal, a line every so often in a log file, where a bar would be one endless line."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
LINE_FORMAT = "{desc}: {n_fmt} of {total_fmt} {unit}s ({percentage:.0f} %), {elapsed} gone, {remaining} left"


def progress_bar(
    work: Iterable[Any] | None = None,
    *,
    total: int,
    unit: str,
    description: str,
    initial: int = 0,
    shown: bool = True,
    line_seconds: float = LINE_SECONDS,
) -> tqdm:
    """Returns a tqdm over `work`, or one to `update()` by hand, that suits where stderr goes.

    Args:
        unit: what is counted, in the singular.
        initial: how many were done before this start.
        shown: False says nothing at all.
        line_seconds: time between two lines of a log file.
    """
    common: dict[str, Any] = {"total": total, "unit": unit, "desc": description, "initial": initial, "smoothing": 0}
    if not shown or not total or sys.stderr.isatty():
        return tqdm(work, disable=not shown or not total, **common)
    seconds = {"mininterval": line_seconds, "maxinterval": line_seconds}
    return tqdm(work, file=_LogLines(), bar_format=LINE_FORMAT, **seconds, **common)


class _LogLines:
    """The file that tqdm draws on: each drawing becomes one line of the log."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            logger.info("%s", line)

    def flush(self) -> None:
        """The log flushes itself."""
