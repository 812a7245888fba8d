"""Reasons to save and stop: signals and a time limit. The loop agrees on them with the other ranks at a step boundary."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from avff import launched
from avff.errors import INTERRUPTED_EXIT_CODE

logger = logging.getLogger(__name__)

SAME_KEYPRESS_SECONDS = 1.0
"""The terminal and torchrun both pass one Ctrl-C on, so each rank gets it twice."""
STUCK_SECONDS = 3.0
"""After a second Ctrl-C, a main thread that has not noticed it for so long is stuck in native code."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Set by TERM, INT, USR1 or USR2 on this rank, or in time before a time limit.

    Within a `with` block the handlers are installed. There, an INT later than a second after the first one stops at
    once, by KeyboardInterrupt, as people expect of a second Ctrl-C; also where Python's handlers do not run, because
    native code does not return.

    Args:
        time_limit_seconds: longest life of this process, counted from its start; 0 sets no limit.
        reserve: returns the seconds to keep free before the limit, for one step and a save.

    Attributes:
        reserve: see above; may be set later.
        on_stuck: called with the reason, from a thread, just before a second Ctrl-C ends a process in native code.
        reason: what set the flag first, such as "SIGUSR2" or "time limit of 30 min"; empty until then.
    """

    def __init__(self, *, time_limit_seconds: float = 0.0, reserve: Callable[[], float] = lambda: 0.0) -> None:
        self.reason = ""
        self._time_limit_seconds = time_limit_seconds
        self.reserve = reserve
        self.on_stuck: Callable[[str], None] = lambda words: None
        self._first_interrupt: float | None = None
        self._num_interrupts_heard = 0
        self._previous: dict[int, object] = {}
        self._previous_wakeup = -1
        self._sender: socket.socket | None = None

    @property
    def is_set(self) -> bool:
        limit = self._time_limit_seconds
        if not self.reason and limit and process_age_seconds() + self.reserve() >= limit:
            self._set(f"time limit of {limit / 60:g} min")
        return bool(self.reason)

    def __enter__(self) -> "StopFlag":
        receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous_wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._end_when_stuck, args=(receiver,), name="interrupts", daemon=True).start()
        self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._previous_wakeup)
        if self._sender:
            self._sender.close()  # which ends the thread

    def _end_when_stuck(self, receiver: socket.socket) -> None:
        """Reads the numbers of signals, which the interpreter sends here even while the main thread is in native code."""
        first_interrupt: float | None = None
        num_interrupts = 0
        with receiver:
            while numbers := receiver.recv(64):
                if signal.SIGINT not in numbers:
                    continue
                num_interrupts += numbers.count(signal.SIGINT)
                now = time.monotonic()
                first_interrupt = first_interrupt or now
                if now - first_interrupt > SAME_KEYPRESS_SECONDS:
                    time.sleep(STUCK_SECONDS)
                    # What the main thread has heard is its own to judge: on a busy machine, this one may be late.
                    if self._num_interrupts_heard < num_interrupts:
                        words = "interrupted while native code did not return"
                        sys.stderr.write(f"avff train: {words}\n")
                        self.on_stuck(words)
                        launched.note_exit_code(INTERRUPTED_EXIT_CODE)
                        os._exit(INTERRUPTED_EXIT_CODE)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._num_interrupts_heard += 1
            now = time.monotonic()
            if self._first_interrupt is None:
                self._first_interrupt = now
            elif now - self._first_interrupt > SAME_KEYPRESS_SECONDS:
                raise KeyboardInterrupt
        if not self.reason:
            self._set(signal.Signals(number).name)

    def _set(self, reason: str) -> None:
        self.reason = reason
        logger.warning("%s: saving after this step, then stopping; interrupt again to stop at once", reason)


def process_age_seconds() -> float:
    """Returns how long this process has been running, imports included."""
    # The name, field 2, may hold spaces; of what follows its closing parenthesis, field 22 is the start in ticks.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
