"""metrics.jsonl, the truth about a run, and wandb with the same numbers."""

from pathlib import Path
from typing import Any

from avff.config import Config
from avff.engine.append_log import AppendLog
from avff.engine.system_metrics import NodeTail
from avff.engine.wandb_run import WandbRun
from avff.run_folder import METRICS

TIMING_FIELDS = frozenset(
    {
        "time_unix",
        "clips_per_second",
        "step_seconds",
        "data_wait_seconds",
        "seconds",
        "mfu",
        "goodput",
        "memory_gib",
        "save_seconds",
        "save_blocked_seconds",
    }
)
"""Fields that differ between two runs of one config; everything else repeats to the bit."""


class MetricsLog:
    """Appends one JSON line per logged step and sends the same numbers to wandb; rank 0 only.

    wandb also gets what all nodes measured of themselves (avff.engine.system_metrics), panels, and checkpoints.

    Args:
        resume_step: updates done at start; later lines of an interrupted run, and a torn last one, are removed.
        code_revision: commit that trains.
    """

    def __init__(self, config: Config, *, resume_step: int, code_revision: str | None = None):
        self.path = config.run_dir / METRICS
        self._lines = AppendLog(self.path)
        self._lines.rewind(resume_step)
        self._nodes = NodeTail(config.run_dir)
        self._start_wandb = lambda: WandbRun(config, code_revision)
        self._wandb = self._start_wandb()

    def rewind(self, step: int) -> None:
        """Removes the lines after a step.

        A row of wandb cannot be taken back, and earlier ones are refused: offline, a new fragment takes them, and
        tools/sync_wandb.py drops the old ones; online, the points of these steps stay as they were.
        """
        self._lines.rewind(step)
        self._wandb.finish(0)
        self._wandb = self._start_wandb()

    def write(self, kind: str, step: int, samples_seen: int, values: dict[str, Any]) -> None:
        """Writes one line.

        Args:
            kind: `train` or `validation`.
        """
        self._lines.append([{"kind": kind, "step": step, "samples_seen": samples_seen, **values}])
        known = {name: value for name, value in values.items() if value is not None}
        self._wandb.log(step, {"step": step, "samples_seen": samples_seen, **known, **self._nodes.means()})

    def write_image(self, name: str, path: Path, step: int, samples_seen: int) -> None:
        self._wandb.log_image(step, name, path, {"step": step, "samples_seen": samples_seen})

    def write_checkpoint(self, step: int) -> None:
        """Tells wandb of a committed checkpoint."""
        self._wandb.log_checkpoint(step)

    def make_durable(self) -> None:
        """Called before a checkpoint is committed: the lines up to it must not be younger than it."""
        self._wandb.end_row()
        self._lines.make_durable()

    def close(self, code: int) -> None:
        """Ends wandb, too, with the code that the process ends with."""
        self._lines.close()
        self._wandb.finish(code)
