"""Signals become a flag; the loop agrees on it with the other ranks at the next step boundary."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL: the run was saved and wants to be started again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Set by TERM, INT, USR1 or USR2 on this rank; within a `with` block the handlers are installed.

    A second INT stops at once, as people expect of Ctrl-C.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._previous: dict[int, object] = {}

    @property
    def is_set(self) -> bool:
        return bool(self.signal_name)

    def __enter__(self) -> "StopFlag":
        self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        logger.warning("%s: saving after this step, then stopping; interrupt again to stop at once", self.signal_name)
