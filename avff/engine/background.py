"""Work with files in a thread, whose disk errors are kept until they are asked for."""

import time
from collections.abc import Callable
from threading import Thread
from typing import Any

from avff.errors import CheckpointError


class Job:
    """A function in a thread of its own; it must not enter a collective or touch a device.

    Attributes:
        seconds: it took; 0 until it is done.
    """

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._outcome: tuple[Any, str | None] | None = None
        self.seconds = 0.0
        # A daemon: a process that ends because of an error elsewhere does not wait for the disk.
        self._thread = Thread(target=self._run, daemon=True, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            self._outcome = self._function(), None
        except (OSError, CheckpointError) as error:
            self._outcome = None, str(error)
        self.seconds = time.monotonic() - started

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> tuple[Any, str | None]:
        """Returns the function's result and None, or None and what went wrong with a file.

        Raises:
            RuntimeError: the function failed in another way, which the thread has printed.
        """
        self._thread.join()
        if self._outcome is None:
            raise RuntimeError("the thread that writes a checkpoint died; its traceback stands above")
        return self._outcome


def problem_of(function: Callable[[], Any]) -> OSError | CheckpointError | None:
    """Runs a function here and now, and returns what went wrong with a file."""
    try:
        function()
    except (OSError, CheckpointError) as error:
        return error
    return None
