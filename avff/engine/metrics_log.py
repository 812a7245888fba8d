"""metrics.jsonl, the truth about a run, and wandb with the same numbers."""

import hashlib
import logging
import os
from pathlib import Path
from threading import Thread
from typing import Any

from avff.config import Config
from avff.engine.append_log import AppendLog
from avff.errors import TrainingError
from avff.strict_yaml import to_dict

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
WANDB_FINISH_SECONDS = 60
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

    Args:
        resume_step: updates done at start; later lines of an interrupted run, and a torn last one, are removed.
    """

    def __init__(self, config: Config, *, resume_step: int):
        self.path = config.run_dir / METRICS
        self._lines = AppendLog(self.path)
        self._lines.rewind(resume_step)
        self._wandb = _start_wandb(config)

    def rewind(self, step: int) -> None:
        """Removes the lines after a step; wandb keeps its points, and shows the later ones of a step."""
        self._lines.rewind(step)

    def write(self, kind: str, step: int, samples_seen: int, values: dict[str, Any]) -> None:
        """Writes one line.

        Args:
            kind: `train` or `validation`.
        """
        self._lines.append([{"kind": kind, "step": step, "samples_seen": samples_seen, **values}])
        if self._wandb is not None:
            known = {name: value for name, value in values.items() if value is not None}
            self._wandb.log({"step": step, "samples_seen": samples_seen, **known})

    def write_image(self, name: str, path: Path, samples_seen: int) -> None:
        if self._wandb is not None:
            import wandb

            self._wandb.log({"samples_seen": samples_seen, name: wandb.Image(str(path))})

    def make_durable(self) -> None:
        """Called before a checkpoint is committed: the lines up to it must not be younger than it."""
        self._lines.make_durable()

    def close(self) -> None:
        """Ends wandb, too, but does not wait for ever: the run is saved, and what is in wandb/ can be sent later."""
        self._lines.close()
        if self._wandb is not None:
            thread = Thread(target=self._wandb.finish, daemon=True, name="wandb")
            thread.start()
            thread.join(WANDB_FINISH_SECONDS)
            if thread.is_alive():
                logger.warning("wandb is not done after %d s; `wandb sync` sends the rest later", WANDB_FINISH_SECONDS)


def _start_wandb(config: Config) -> Any:
    if config.logging.wandb == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    run_dir = config.run_dir.resolve()
    try:
        run = wandb.init(
            project=config.logging.wandb_project,
            name=config.name,
            # From the folder's path, so that a requeued job continues its curve.
            id=hashlib.sha256(str(run_dir).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run_dir),
            config=to_dict(config),
            mode=_wandb_mode(config),
            settings=wandb.Settings(init_timeout=60, x_disable_stats=True, console="off"),
        )
    except (wandb.Error, OSError) as error:
        raise TrainingError(f"wandb did not start: {error}; set logging.wandb=disabled to train without it") from error
    run.define_metric("samples_seen")
    run.define_metric("*", step_metric="samples_seen")
    return run


def _wandb_mode(config: Config) -> Any:
    if config.logging.wandb != "auto":
        return config.logging.wandb
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"
