"""decisions.jsonl: what a run decided on the way and every later process has to repeat.

    {"kind": "quarantined", "key": ..., "shard": ..., "position": ..., "reason": ...}    a clip is not read any more
    {"kind": "rewound", "from_step": ..., "first_plan_step": ..., "stop_plan_step": ..., ...}
    {"kind": "replanned", "from_step": ..., "data_hash": ...}                              other shards were accepted

A resume truncates metrics and ledger, never this file: a decision is made once, whatever a machine would decide
the next time. With it, the clips of a step stay a pure function of the plan.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from avff import distributed
from avff.data.quarantine import Quarantine, Quarantined
from avff.engine import agreement
from avff.engine.append_log import AppendLog, truncate
from avff.json_lines import read_lines

FILE = "decisions.jsonl"


class Decisions:
    """Kept by all ranks alike; rank 0 writes the file.

    Attributes:
        quarantine: clips that are replaced from some position of the plan on.
        rewinds: in the order they were decided.
    """

    def __init__(self, run_dir: Path, *, samples_per_step: int):
        path = run_dir / FILE
        records = agreement.on_main(lambda: _open(path))
        self._log = AppendLog(path) if distributed.is_main() else None
        quarantined = (record for record in records if record["kind"] == "quarantined")
        clips = [Quarantined(**{name: record[name] for name in Quarantined._fields}) for record in quarantined]
        self.quarantine = Quarantine(clips, samples_per_step=samples_per_step)
        self.rewinds: list[dict[str, Any]] = [record for record in records if record["kind"] == "rewound"]
        self.data_hashes = [record["data_hash"] for record in records if record["kind"] == "replanned"]

    # --------------------------------------------------------------------------------------- which step reads what

    def plan_step(self, step: int) -> int:
        """Returns the step of the plan that update `step` reads: the one of this number among those not left out."""
        return _after_windows(step, self._windows())

    def plan_steps(self, start: int, stop: int) -> Sequence[int]:
        """Returns the plan's steps for updates [start, stop), in order."""
        return _Steps(range(start, stop), self._windows())

    def _windows(self) -> list[tuple[int, int]]:
        """Returns the runs [start, stop) of plan steps that are left out, joined and in order."""
        windows: list[tuple[int, int]] = []
        for start, stop in sorted((r["first_plan_step"], r["stop_plan_step"]) for r in self.rewinds):
            if windows and start <= windows[-1][1]:
                windows[-1] = windows[-1][0], max(stop, windows[-1][1])
            else:
                windows.append((start, stop))
        return windows

    # --------------------------------------------------------------------------------------- deciding

    def quarantined(self, found: Sequence[Quarantined]) -> None:
        """Puts clips on the list; every rank passes the same ones."""
        self.quarantine = self.quarantine.with_(found)
        self._record({"kind": "quarantined", **clip._asdict()} for clip in found)

    def rewound(self, *, from_step: int, spike_step: int, loss: float) -> None:
        """Leaves out what updates [from_step, spike_step] read: update `from_step` continues with what comes after."""
        record = {
            "kind": "rewound",
            "from_step": from_step,
            "first_plan_step": self.plan_step(from_step),
            "stop_plan_step": self.plan_step(spike_step) + 1,
            "spike_step": spike_step,
            "loss": loss,
        }
        self.rewinds.append(record)
        self._record([record])

    def replanned(self, *, from_step: int, data_hash: str) -> None:
        """Accepts other shards from a step on."""
        self.data_hashes.append(data_hash)
        self._record([{"kind": "replanned", "from_step": from_step, "data_hash": data_hash}])

    def is_superseded(self, step: int, num_rewinds: int) -> bool:
        """True for a checkpoint of a stretch that was rewound: made before the rewind, after the step it went to."""
        return any(rewind["from_step"] < step for rewind in self.rewinds[num_rewinds:])

    def make_durable(self) -> None:
        if self._log:
            self._log.make_durable()

    def _record(self, records: Iterable[dict[str, Any]]) -> None:
        if self._log:
            self._log.append(records, durable=True)


def _open(path: Path) -> list[dict[str, Any]]:
    truncate(path)
    return read_lines(path)


def _after_windows(step: int, windows: Sequence[tuple[int, int]]) -> int:
    for start, stop in windows:
        if step < start:
            break
        step += stop - start
    return step


class _Steps(Sequence[int]):
    """Updates as steps of the plan, without listing them."""

    def __init__(self, updates: range, windows: Sequence[tuple[int, int]]):
        self._updates = updates
        self._windows = windows

    def __len__(self) -> int:
        return len(self._updates)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return _after_windows(self._updates[index], self._windows)
