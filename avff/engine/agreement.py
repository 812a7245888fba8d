"""What all ranks do or refuse together, so that none waits in a collective that another never enters."""

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
    """Runs `function` on every rank; if it fails on any, every rank raises the lowest failing rank's error."""
    result, error = _attempt(function)
    for other in distributed.gather_objects(error):
        if other is not None:
            raise other
    return result  # type: ignore[return-value]


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
