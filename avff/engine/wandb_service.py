"""What wandb may take of a process's time: its client waits without a limit for its service, and that for the network.

Every call goes through `within`, and `stop` comes before a new start, so that a stuck service (process wandb-core) costs
the stated seconds and never a training run.
"""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import TypeVar

import psutil

from avff.errors import CheckpointError

LOGIN_SECONDS = 60.0
"""wandb gives up by itself after 10 s (or WANDB_HTTP_TIMEOUT) of a service that has started."""
LOGIN_RETRIES = 1
"""wandb's own 20 take minutes, in which its service does not even end when it is told to."""
STOP_SECONDS = 5.0
SERVICE = "wandb-core"

Result = TypeVar("Result")


def within(seconds: float, action: Callable[[], Result]) -> Result:
    """Returns what `action` returns, and raises what it raises.

    Raises:
        TimeoutError: it took longer. wandb's service was killed then, which ends what waits for it.
    """
    outcome: Future[Result] = Future()

    def act() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # noqa: BLE001  raised by the caller
            outcome.set_exception(error)

    # A daemon: the process's end does not wait for it either.
    thread = Thread(target=act, daemon=True, name="wandb")
    thread.start()
    thread.join(seconds)
    if not outcome.done():
        _kill_service()
        thread.join(STOP_SECONDS)  # what it holds of wandb's locks is free then
        raise TimeoutError(f"wandb took longer than {seconds:g} s")
    return outcome.result()


def can_log_in() -> bool:
    """Returns whether there is a login; asks its server in a service of its own, which tries less often than a run's.

    Raises:
        one of `failures()`: the server does not answer, or refuses the login.
    """
    import wandb

    def log_in() -> bool:
        wandb.setup(wandb.Settings(x_graphql_retry_max=LOGIN_RETRIES))
        return bool(wandb.login(prompt=False))

    try:
        return within(LOGIN_SECONDS, log_in)
    finally:
        stop()


def stop() -> None:
    """Ends wandb's service, which would call the id of a run in use, by force where it does not end in time."""
    import wandb

    # SystemExit: with the code of a service that was killed.
    with suppress(*failures(), SystemExit):
        within(STOP_SECONDS, wandb.teardown)
    _kill_service()  # one that wandb started and did not get to speak


def failures() -> tuple[type[Exception], ...]:
    """What wandb, or reading what it is told of, raises where network, login, disk or service fail; no common base."""
    import wandb
    from wandb.sdk.lib.asyncio_manager import AlreadyJoinedError, RunCancelledError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox.mailbox import MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError, ServerResponseError

    service = (WandbApiFailedError, WandbServiceConnectionError, AlreadyJoinedError, RunCancelledError)
    mailbox = (MailboxClosedError, HandleAbandonedError, ServerResponseError)
    # ValueError: a name that wandb does not allow, a WANDB_ variable that its settings refuse.
    return wandb.Error, OSError, ValueError, TypeError, CheckpointError, *service, *mailbox


def _kill_service() -> None:
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == SERVICE:
                child.kill()
