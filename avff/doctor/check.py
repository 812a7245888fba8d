"""What one check says, and how it is run so that it always says something."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from threading import Thread
from typing import Any, NamedTuple

from avff.errors import describe


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    """Training runs, but slower or less safely than it could."""
    FAIL = "FAIL"
    """Training would end, hang, or get nowhere because of this."""


class Measure(NamedTuple):
    """A number that differs from node to node without being wrong."""

    label: str
    number: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """The answer of one check on one node.

    Attributes:
        value: what was found; equal on nodes that are alike, so that they share a line.
        fix: what to do about it; empty where nothing is to be done.
        measures: numbers that are shown as a range over nodes.
        facts: what has to be the same on every node, by name.
    """

    status: Status = Status.OK
    value: str
    fix: str = ""
    measures: tuple[Measure, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Check":
        measures = tuple(Measure(*measure) for measure in values["measures"])
        return cls(**{**values, "status": Status(values["status"]), "measures": measures})

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as JSON holds them."""
        return asdict(self)


def ok(value: str, *measures: Measure, facts: dict[str, str] | None = None) -> Check:
    return Check(value=value, measures=measures, facts=facts or {})


def warn(value: str, fix: str, *measures: Measure, facts: dict[str, str] | None = None) -> Check:
    return Check(status=Status.WARN, value=value, fix=fix, measures=measures, facts=facts or {})


def fail(value: str, fix: str, *measures: Measure, facts: dict[str, str] | None = None) -> Check:
    return Check(status=Status.FAIL, value=value, fix=fix, measures=measures, facts=facts or {})


CheckFunction = Callable[[], Check]


def run_check(function: CheckFunction, limit_seconds: float) -> Check:
    """Returns what a check says; an error that it raises, and no answer in time, are answers too.

    A check that hangs, in a file system that does not answer, say, is left behind in its thread.
    """
    answers: list[Check] = []
    thread = Thread(target=lambda: answers.append(_answer(function)), daemon=True, name="avff-check")
    thread.start()
    thread.join(limit_seconds)
    if answers:
        return answers[0]
    return fail(
        f"no answer after {limit_seconds:g} s",
        "a file system or a driver hangs on this node; look at `dmesg` and `df` there, or leave the node out "
        "(SLURM: --exclude)",
    )


def _answer(function: CheckFunction) -> Check:
    try:
        return function()
    except Exception as error:  # noqa: BLE001  whatever breaks is what the user wants to hear about
        return fail(describe(error), "mend what the message names, then run avff doctor again")
