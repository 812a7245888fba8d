"""Samples that are no longer read because of what happened while reading them: a time-out, a crash, an I/O error.

Bytes that are wrong are wrong on every machine, so their substitutes follow from the plan alone. What happened once,
on one machine, does not: it is written down, and delivered clips are a pure function of the plan and this list.
"""

from collections.abc import Iterable
from typing import NamedTuple

from avff.data.index import IndexRow


class Quarantined(NamedTuple):
    """One sample and where it came up when it could not be read.

    Attributes:
        shard: file name of the tar. Two directories that share file and key are quarantined together.
        position: of the clip on the plan's line.
        reason: the error, as a sentence.
    """

    key: str
    shard: str
    position: int
    reason: str


class Quarantine:
    """The list of a run; immutable, since everything that was read with a shorter list stays as it was read.

    Attributes:
        entries: by position.
    """

    def __init__(self, entries: Iterable[Quarantined], *, samples_per_step: int):
        self.entries = tuple(sorted(set(entries), key=lambda entry: (entry.position, entry.shard, entry.key)))
        self._samples_per_step = samples_per_step
        self._by_sample: dict[tuple[str, str], list[Quarantined]] = {}
        for entry in self.entries:
            self._by_sample.setdefault((entry.key, entry.shard), []).append(entry)

    def reason(self, row: IndexRow, position: int) -> str | None:
        """Returns why a sample must not be read at a position of the line; None where it may be.

        It is left out at the very position where it failed and in every later step. Elsewhere in the step of its
        failure other ranks have read it already, before they could know.
        """
        first_position = position - position % self._samples_per_step
        for entry in self._by_sample.get((row.key, row.shard), ()):
            if entry.position == position or entry.position < first_position:
                return entry.reason
        return None

    def with_(self, more: Iterable[Quarantined]) -> "Quarantine":
        """Returns a longer list."""
        return Quarantine([*self.entries, *more], samples_per_step=self._samples_per_step)
