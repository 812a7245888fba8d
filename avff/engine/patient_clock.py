"""Time as the watchdog counts it, by which a machine that stood still accuses nobody."""

import threading
import time


class PatientClock:
    """Counts the seconds since it was made, as seen by whoever looks at it; any thread may.

    Args:
        longest_tick_seconds: counted at most between two looks, however long it was: a process that was suspended, or
            had no share of a busy machine, could not hear from others either.
    """

    def __init__(self, longest_tick_seconds: float):
        self._longest_tick_seconds = longest_tick_seconds
        self._seconds = 0.0
        self._looked_at = time.monotonic()
        self._lock = threading.Lock()

    def seconds(self) -> float:
        with self._lock:
            now = time.monotonic()
            self._seconds += min(now - self._looked_at, self._longest_tick_seconds)
            self._looked_at = now
            return self._seconds
