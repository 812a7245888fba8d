"""What all ranks do or refuse together, so that none waits in a collective that another never enters."""

import socket
from collections.abc import Callable
from typing import Any, TypeVar

from safetensors import SafetensorError

from avff import distributed
from avff.errors import AvffError

T = TypeVar("T")


def on_main(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 and returns its result, or raises its error, on every rank."""
    outcome: Any = distributed.broadcast_object(_attempt(function) if distributed.is_main() else None)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def everywhere(function: Callable[[], T]) -> T:
    """Runs `function` on every rank; if it fails on any, every rank raises the lowest failing rank's error.

    Where it did not fail on all of them, as with a folder that one machine lacks, a note on the error says where.
    """
    result, own_error = _attempt(function)
    outcomes = distributed.gather_objects((own_error, socket.gethostname()))
    failures = [(rank, error, host) for rank, (error, host) in enumerate(outcomes) if error is not None]
    if not failures:
        return result  # type: ignore[return-value]
    rank, error, host = failures[0]
    if len(failures) < len(outcomes):
        others = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        error.add_note(f"on rank {rank} (host {host}){others}, not on all {len(outcomes)} ranks")
    raise error


def problems_of(function: Callable[[], object]) -> list[str]:
    """Runs `function` on every rank and returns, on every rank, what went wrong on any."""
    _, error = _attempt(function)
    texts = distributed.gather_objects(None if error is None else str(error))
    return [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text is not None]


def _attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except SafetensorError as error:  # not picklable: carry its text
        return None, OSError(str(error))
    except (AvffError, OSError) as error:
        return None, error
