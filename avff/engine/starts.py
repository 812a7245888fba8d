"""starts.jsonl, one line per start of a run, and the end of a loop of starts that come to nothing."""

import socket
import time
from itertools import takewhile
from typing import Any

from avff import run_folder
from avff.config import Config
from avff.engine.append_log import AppendLog, truncate
from avff.errors import INTERRUPTED_EXIT_CODE, REFUSED_EXIT_CODE, TrainingError
from avff.json_lines import read_lines

STARTS = "starts.jsonl"

KILLED = "no exit.json: killed, or its machine failed"

_WANTED = (0, INTERRUPTED_EXIT_CODE)
"""Finished, interrupted by somebody who is there."""


def record_start(config: Config, last_exit: dict[str, Any] | None) -> None:
    """Adds this start, with how the one before it ended; refuses it after too many that came to nothing.

    A start came to nothing when it crashed, hung, was killed or was told to stop, and left the newest checkpoint where
    it was. A refused start is not recorded, so that it does not count.

    Args:
        last_exit: content of exit.json; None without one.

    Raises:
        TrainingError: the last `faults.max_failed_starts` starts came to nothing.
    """
    path = config.run_dir / STARTS
    truncate(path)
    earlier = read_lines(path)
    end = _end_of_the_last(earlier, last_exit)
    newest = max(run_folder.committed_steps(config.run_dir), default=0)
    _refuse_a_fruitless_loop(config, earlier, end, newest)
    line = {"time_unix": time.time(), "host": socket.gethostname(), "step": newest, "last_end": end}
    log = AppendLog(path)
    log.append([line], durable=True)
    log.close()


def _end_of_the_last(earlier: list[dict[str, Any]], last_exit: dict[str, Any] | None) -> dict[str, Any] | None:
    if last_exit is not None:
        return {"reason": last_exit["reason"], "code": last_exit["code"], "step": last_exit["step"]}
    return {"reason": KILLED, "code": None, "step": None} if earlier else None


def _refuse_a_fruitless_loop(
    config: Config, earlier: list[dict[str, Any]], end: dict[str, Any] | None, newest: int
) -> None:
    # Each start with the end that the start after it found.
    ends = [line["last_end"] for line in earlier[1:]] + [end]
    newest_first = zip(reversed(earlier), reversed(ends), strict=False)
    fruitless = sum(1 for _ in takewhile(lambda pair: _is_fruitless(*pair, newest), newest_first))
    limit = config.faults.max_failed_starts
    if fruitless >= limit and end is not None:
        raise TrainingError(
            f"{config.run_dir}: the last {fruitless} starts all ended without saving anything after step {newest}, the "
            f"last one with: {end['reason']}; {config.run_dir / STARTS} lists them; once the cause is mended, try again "
            f"with faults.max_failed_starts={fruitless + 1} (now {limit})"
        )


def _is_fruitless(start: dict[str, Any], end: dict[str, Any], newest: int) -> bool:
    # Before the first step somebody mends it; later, such as for an unreadable validation clip, each start ends there.
    refused = end["code"] == REFUSED_EXIT_CODE and not end["step"]
    return start["step"] == newest and end["code"] not in _WANTED and not refused
