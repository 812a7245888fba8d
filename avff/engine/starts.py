"""starts.jsonl, one line per start of a run, and the end of a loop of crashes."""

import socket
import time
from itertools import takewhile
from typing import Any

from avff import run_folder
from avff.config import Config
from avff.engine.append_log import AppendLog, read_lines, truncate
from avff.engine.signals import PREEMPTED_EXIT_CODE
from avff.errors import TrainingError

STARTS = "starts.jsonl"

KILLED = "no exit.json: killed, or its machine failed"

_NO_CRASH = (0, PREEMPTED_EXIT_CODE, 130)
"""Finished, saved and stopped, interrupted: ends after which another start may go otherwise."""
_REFUSED = 2
"""No crash before the first step; later, such as for a validation clip that cannot be read, each start ends there."""


def record_start(config: Config, last_exit: dict[str, Any] | None) -> None:
    """Adds this start, with how the one before it ended; refuses it after too many crashes at one checkpoint.

    A refused start is not recorded, so that it does not count as a crash.

    Args:
        last_exit: content of exit.json; None without one.

    Raises:
        TrainingError: the last `faults.max_failed_starts` starts crashed at the checkpoint that is still the newest.
    """
    path = config.run_dir / STARTS
    truncate(path)
    earlier = read_lines(path)
    end = _end_of_the_last(earlier, last_exit)
    newest = max(run_folder.committed_steps(config.run_dir), default=0)
    _refuse_a_crash_loop(config, earlier, end, newest)
    line = {"time_unix": time.time(), "host": socket.gethostname(), "step": newest, "last_end": end}
    log = AppendLog(path)
    log.append([line], durable=True)
    log.close()


def _end_of_the_last(earlier: list[dict[str, Any]], last_exit: dict[str, Any] | None) -> dict[str, Any] | None:
    if last_exit is not None:
        return {"reason": last_exit["reason"], "code": last_exit["code"], "step": last_exit["step"]}
    return {"reason": KILLED, "code": None, "step": None} if earlier else None


def _refuse_a_crash_loop(
    config: Config, earlier: list[dict[str, Any]], end: dict[str, Any] | None, newest: int
) -> None:
    # Each start with the end that the start after it found.
    ends = [line["last_end"] for line in earlier[1:]] + [end]
    newest_first = zip(reversed(earlier), reversed(ends), strict=False)
    crashes = sum(1 for _ in takewhile(lambda pair: _is_crash(*pair, newest), newest_first))
    limit = config.faults.max_failed_starts
    if crashes >= limit and end is not None:
        raise TrainingError(
            f"{config.run_dir}: the last {crashes} starts all crashed without saving anything after step {newest}, the "
            f"last one with: {end['reason']}; {config.run_dir / STARTS} lists them; once the cause is mended, try again "
            f"with faults.max_failed_starts={crashes + 1} (now {limit})"
        )


def _is_crash(start: dict[str, Any], end: dict[str, Any], newest: int) -> bool:
    refused = end["code"] == _REFUSED and not end["step"]
    return start["step"] == newest and end["code"] not in _NO_CRASH and not refused
