"""Large arrays whose memory is used again once nothing refers to them.

New memory costs several times what it takes to fill it: the kernel makes and clears each page on first touch.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_KEPT = 4


def lend(memory_N: np.ndarray, give_back: Callable[[], object]) -> memoryview:
    """Returns all bytes of an array; `give_back` is called when nothing that was made of them is left.

    Args:
        memory_N: uint8.
        give_back: may be called in any thread.
    """
    lent = memory_N.view()
    weakref.finalize(lent, give_back).atexit = False
    return lent.data


class ReusedMemory:
    """Hands out arrays; the memory of the last few that were let go is kept for others of their size."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=_KEPT)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
        """Returns an array with any content, as `np.empty` does."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory_N = self._take(num_bytes)
        return np.frombuffer(lend(memory_N, lambda: self._free.append(memory_N)), dtype).reshape(shape)

    def _take(self, num_bytes: int) -> np.ndarray:
        for _ in range(len(self._free)):
            memory_N = self._free.pop()
            if len(memory_N) == num_bytes:
                return memory_N
            self._free.appendleft(memory_N)
        return np.empty(num_bytes, dtype=np.uint8)
