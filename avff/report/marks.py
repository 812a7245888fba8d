"""What happened to a run on its way: starts, rewinds, spikes, skipped updates; each has a place on the curves."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from avff.report.curves import Clock
from avff.report.runs import Run

MAX_REASON_CHARACTERS = 200


class Mark(NamedTuple):
    """One event.

    Attributes:
        kind: start, rewind, replan, spike or skip.
        step: updates done when the run went on from there.
        time_unix: None where only the step is known.
    """

    kind: str
    step: int
    time_unix: float | None
    text: str


def marks_of(run: Run) -> list[Mark]:
    """Returns what happened, in order of steps; the first start is no event."""
    found = [*_starts(run), *_decisions(run), *_ledger(run)]
    return sorted(found, key=lambda mark: mark.step)


def _starts(run: Run) -> Iterator[Mark]:
    for number, start in enumerate(run.starts[1:], 2):
        text = (
            f"start {number} on {start['host']}, at step {start['step']}; before it: {describe_end(start['last_end'])}"
        )
        yield Mark("start", start["step"], start["time_unix"], text)


def describe_end(end: dict[str, Any] | None) -> str:
    """Returns how a start ended, in words; `end` is what the start after it found, or exit.json."""
    if end is None:
        return "nothing"
    reason = str(end["reason"])
    shown = reason if len(reason) <= MAX_REASON_CHARACTERS else reason[:MAX_REASON_CHARACTERS] + " …"
    return shown if end["code"] is None else f"{shown} (code {end['code']}, step {end['step']})"


def _decisions(run: Run) -> Iterator[Mark]:
    for record in run.decisions:
        if record["kind"] == "rewound":
            text = f"went back to step {record['from_step']}: at step {record['spike_step']} the loss was {record['loss']:.4g}"
            yield Mark("rewind", record["from_step"], None, text)
        elif record["kind"] == "replanned":
            yield Mark("replan", record["from_step"], None, f"other shards from step {record['from_step']} on")


def _ledger(run: Run) -> Iterator[Mark]:
    for record in run.ledger:
        if record["kind"] == "spike":
            yield Mark("spike", record["step"], None, f"step {record['step']}: loss {record['loss']:.4g} is a spike")
        elif record["kind"] == "skipped":
            yield Mark("skip", record["step"], None, f"step {record['step']}: not finite, update skipped on all ranks")


def place(mark: Mark, clock: Clock) -> tuple[int, float, float]:
    """Returns step, clips seen and elapsed seconds of a mark."""
    samples_seen, elapsed_seconds = clock.at_step(mark.step)
    if mark.time_unix is not None:
        elapsed_seconds = mark.time_unix - clock.origin_unix
    return mark.step, samples_seen, elapsed_seconds
