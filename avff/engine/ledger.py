"""ledger.jsonl: every sample that was replaced, every update that was skipped, every spike, and the budgets."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from avff import distributed
from avff.config import Config
from avff.data.quarantine import Quarantined
from avff.data.stream import Substitution
from avff.engine.append_log import AppendLog
from avff.engine.update import BadBatch
from avff.errors import TrainingError


class Ledger:
    """Kept by all ranks alike; rank 0 writes the file.

    Attributes:
        num_substituted: samples replaced so far.
        num_skipped: updates skipped so far.
        num_spikes: losses far above those before them.
        consecutive_skips: of the last updates.
    """

    def __init__(self, config: Config, state: dict[str, int], *, resume_step: int):
        self.config = config
        self.path: Path = config.run_dir / "ledger.jsonl"
        self._causes: Counter[tuple[str, str]] = Counter()  # since this process started
        self._lines = AppendLog(self.path) if distributed.is_main() else None
        self.restore(state, resume_step)

    def restore(self, state: dict[str, int], resume_step: int) -> None:
        """Goes back to what a checkpoint holds; later lines, and a torn last one, are removed."""
        self.num_substituted = state.get("num_substituted", 0)
        self.num_skipped = state.get("num_skipped", 0)
        self.consecutive_skips = state.get("consecutive_skips", 0)
        self.num_spikes = state.get("num_spikes", 0)
        if self._lines:
            self._lines.rewind(resume_step)

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {
            "num_substituted": self.num_substituted,
            "num_skipped": self.num_skipped,
            "consecutive_skips": self.consecutive_skips,
            "num_spikes": self.num_spikes,
        }

    def make_durable(self) -> None:
        """Raises OSError where the disk does not take the lines."""
        if self._lines:
            self._lines.make_durable()

    def substituted(self, step: int, substitutions: Sequence[Substitution]) -> list[Quarantined]:
        """Records the step's replaced samples; a collective.

        Args:
            step: updates done after this one.
            substitutions: this rank's.

        Returns:
            over all ranks, the clips that go on the quarantine list.

        Raises:
            TrainingError: more samples than `faults.max_substituted_fraction` were replaced.
        """
        found = [clip for share in distributed.gather_objects(list(substitutions)) for clip in share]
        found.sort(key=lambda clip: clip.position)
        self.num_substituted += len(found)
        self._append({"kind": "substituted", **_ledger_record(clip), "step": step} for clip in found)
        self._causes.update((clip.shard, clip.reason) for clip in found)
        budget = self.config.faults.max_substituted_fraction
        samples_read = step * self.config.samples_per_step
        # A single bad sample in a run's first steps is no verdict on the data.
        if self.num_substituted > max(1, budget * samples_read):
            (shard, reason), count = self._causes.most_common(1)[0]
            raise TrainingError(
                f"{self.num_substituted} of {samples_read} samples had to be replaced, more than "
                f"faults.max_substituted_fraction={budget}; most often, {count} times, in {shard}: {reason}"
            )
        return [Quarantined(c.key, Path(c.shard).name, c.position, c.reason) for c in found if c.lasting]

    def applied(self) -> None:
        self.consecutive_skips = 0

    def spiked(self, step: int, loss: float) -> None:
        """Records an update whose loss was a spike."""
        self.num_spikes += 1
        self._append([{"kind": "spike", "step": step, "loss": loss}])

    def skipped(self, step: int, bad_batches: Sequence[BadBatch], gradient_norms: dict[str, float]) -> None:
        """Records an update that all ranks skipped; a collective.

        Raises:
            TrainingError: `faults.max_nonfinite_steps` updates in a row were skipped.
        """
        bad = [batch for share in distributed.gather_objects(list(bad_batches)) for batch in share]
        # A loss over all ranks' clips is bad on every rank; the rank with the bad clip has more that is.
        bad.sort(key=_num_finite_terms)
        self.num_skipped += 1
        self.consecutive_skips += 1
        where = [
            {"rank": b.rank, "keys": list(b.keys), "terms": {name: repr(value) for name, value in b.terms.items()}}
            for b in bad
        ]
        norms = {name: repr(norm) for name, norm in gradient_norms.items()}
        self._append([{"kind": "skipped", "step": step, "gradient_norms": norms, "batches": where}])
        if self.consecutive_skips >= self.config.faults.max_nonfinite_steps:
            raise TrainingError(
                f"step {step}: {self.consecutive_skips} updates in a row were not finite "
                f"(faults.max_nonfinite_steps={self.config.faults.max_nonfinite_steps}); gradient norms {norms}; "
                + ("; ".join(_sentence(batch) for batch in bad) or "every loss was finite")
            )

    def _append(self, records: Iterable[dict[str, Any]]) -> None:
        if self._lines:
            self._lines.append(records)


def _ledger_record(clip: Substitution) -> dict[str, Any]:
    """Whether a clip was put on the quarantine list then stands in decisions.jsonl; here, a repeated step repeats."""
    return {name: value for name, value in clip._asdict().items() if name != "lasting"}


def _num_finite_terms(batch: BadBatch) -> int:
    return sum(math.isfinite(value) for value in batch.terms.values())


def _sentence(batch: BadBatch) -> str:
    wrong = ", ".join(f"{name}={value}" for name, value in batch.terms.items() if not abs(value) < float("inf"))
    return f"rank {batch.rank}: {wrong} on keys {', '.join(batch.keys)}"
