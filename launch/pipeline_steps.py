"""The steps of a pipeline: train a stage, adapt its weights for the next one, evaluate the last.

Nothing is remembered on the side. A step is done when what it makes is there and names, by sha256, what it was made
from; so a pipeline may be taken up by another command, another executor, or after a stage was trained by hand.
"""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from avff import run_folder
from avff.config import Config, save_config
from avff.engine.run_state import forbidden_changes, read_exit
from avff.run_lock import holder
from avff.strict_yaml import to_dict
from launch.script import config_path

SUMMARY = "summary.json"
"""Which `avff evaluate` writes; its room is slow to import."""


class State(StrEnum):
    DONE = "done"
    ACTIVE = "active"  # queued or running, here or elsewhere
    FAILED = "failed"
    TO_DO = "to do"
    BLOCKED = "blocked"  # made from something else than this pipeline would make it from


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a step has come.

    Attributes:
        detail: for people.
        job: of SLURM, that works on it; empty without one.
    """

    state: State
    detail: str = ""
    job: str = ""


class Step(Protocol):
    """One link of the chain; it depends on the one before it."""

    @property
    def config(self) -> Config:
        """Of the run that it belongs to."""

    @property
    def name(self) -> str:
        """Short and unique within the pipeline; the name of its job."""

    @property
    def output(self) -> Path:
        """What it makes."""

    @property
    def folder(self) -> Path:
        """Where its job is recorded."""

    def words(self, code: Path, config_path: Path) -> list[str]:
        """Returns what follows `python`.

        Args:
            code: checkout or snapshot whose scripts are run.
            config_path: where `config` is saved.
        """

    def look(self, *, is_ready: bool) -> Progress:
        """Says how far it has come; `is_ready`: all steps before it are done."""


# ------------------------------------------------------------------------------------------- the three kinds


@dataclasses.dataclass(frozen=True)
class Train:
    """One stage.

    Attributes:
        source: run folder of the stage before; None for the first.
    """

    config: Config
    source: Path | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def output(self) -> Path:
        return self.config.run_dir

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    def words(self, code: Path, config_path: Path) -> list[str]:
        return ["-m", "avff", "train", str(config_path)]

    def look(self, *, is_ready: bool) -> Progress:
        steps, num_steps = run_folder.committed_steps(self.output), self.config.optim.num_steps
        if problem := self._mismatch(steps, is_ready):
            return Progress(State.BLOCKED, problem)
        end = read_exit(self.output)
        if end and end["code"] == 0 and num_steps in steps:
            return Progress(State.DONE, f"step {num_steps} of {num_steps}")
        if who := holder(self.output):
            return Progress(State.ACTIVE, f"process {who['pid']} on {who['host']} trains it", who["job"])
        if not (self.output / "config.yaml").is_file():
            return Progress(State.TO_DO)
        reached = f"saved step {max(steps, default=0)} of {num_steps}"
        return Progress(State.FAILED, f"{reached}; {end['reason'] if end else 'killed without a last word'}")

    def _mismatch(self, steps: list[int], is_ready: bool) -> str | None:
        if not steps:
            return self._missing_start()
        if changes := forbidden_changes(self.config):
            listed = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, old, new in changes)
            return f"was started with another config ({listed}); use the old values or another `name`"
        if self.source is None:
            return None
        if not is_ready:
            return (
                f"is at step {steps[-1]} already, but {self.source.name} before it is not finished; leave that config "
                "out, or move this run away"
            )
        made_from = _grandparent_sha256(run_folder.checkpoint_dir(self.output, steps[-1]))
        if made_from != (expected := weights_sha256(self.source)):
            return f"was started from other weights ({made_from[:12]}, {self.source.name} has {expected[:12]}); move it away"
        return None

    def _missing_start(self) -> str | None:
        path = self.config.engine.init_weights
        if self.source is not None or not path or Path(path).is_file():
            return None
        return f"engine.init_weights {path}: no such file"


@dataclasses.dataclass(frozen=True)
class Adapt:
    """Carries the weights of one stage over to the next.

    Attributes:
        source: run folder of the one stage.
        config: of the next.
    """

    source: Path
    config: Config

    @property
    def name(self) -> str:
        return f"{self.source.name}-to-{self.config.name}"

    @property
    def output(self) -> Path:
        return Path(self.config.engine.init_weights)

    @property
    def folder(self) -> Path:
        return self.config.run_dir / "jobs" / "adapt"

    def words(self, code: Path, config_path: Path) -> list[str]:
        script = code / "tools" / "adapt_weights.py"
        return [str(script), "--from", str(self.source), "--to", str(config_path), "--output", str(self.output)]

    def look(self, *, is_ready: bool) -> Progress:
        if not is_ready:
            return Progress(State.TO_DO)
        if run_folder.committed_steps(self.config.run_dir):
            return Progress(State.DONE, f"{self.config.name} has started from it")
        sidecar = _read_json(self.output.with_suffix(".json"))
        if sidecar is None or not self.output.is_file():
            return Progress(State.TO_DO)
        is_current = [parent["sha256"] for parent in sidecar["parents"]] == [weights_sha256(self.source)]
        now = to_dict(self.config)
        if is_current and all(sidecar["config"][section] == now[section] for section in ("stage", "clip", "model")):
            return Progress(State.DONE)
        return Progress(State.TO_DO, "what is there was made from or for something else")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Scores the last stage."""

    config: Config
    shards: tuple[Path, ...]
    split: str = "test"

    @property
    def name(self) -> str:
        return f"{self.config.name}-evaluate"

    @property
    def output(self) -> Path:
        return self.config.run_dir / "evaluation" / self.split

    @property
    def folder(self) -> Path:
        return self.config.run_dir / "jobs" / "evaluate"

    def words(self, code: Path, config_path: Path) -> list[str]:
        run, shards = str(self.config.run_dir), [str(path) for path in self.shards]
        where = ["--split", self.split, "--output", str(self.output)]
        return ["-m", "avff", "evaluate", "--checkpoint", run, "--shards", *shards, *where]

    def look(self, *, is_ready: bool) -> Progress:
        summary = _read_json(self.output / SUMMARY) if is_ready else None
        if summary is None:
            return Progress(State.TO_DO)
        shards = {name for name in summary["provenance"] if name.startswith("shards ")}
        is_same = shards == {f"shards {path}" for path in self.shards}
        if is_same and summary["checkpoint_sha256"] == [weights_sha256(self.config.run_dir)]:
            return Progress(State.DONE)
        return Progress(State.TO_DO, "what is there is of another checkpoint or other shards")


def save_step_config(step: Step, folder: Path) -> None:
    """Saves the resolved config of a step, so that later edits of its file do not reach it; steps of one run share it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(step.config, config_path(step.config, folder))


# ------------------------------------------------------------------------------------------- what files say


def weights_sha256(run_dir: Path) -> str:
    """Returns the sha256 of the weights that `--checkpoint RUN` means, as recorded when they were saved."""
    _, step = run_folder.find_checkpoint(str(run_dir))
    listing = run_folder.read_listing(run_folder.checkpoint_dir(run_dir, step))
    return listing[run_folder.EMA if run_folder.EMA in listing else run_folder.WEIGHTS]["sha256"]


def _grandparent_sha256(checkpoint: Path) -> str:
    """Returns the weights that a run's initial weights were adapted from; empty where it had none."""
    sidecar = _read_json((checkpoint / run_folder.WEIGHTS).with_suffix(".json"))
    parents = sidecar["parents"] if sidecar else []
    grandparents = [one["sha256"] for parent in parents for one in parent["parents"]]
    return grandparents[0] if grandparents else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
