"""Real training under torchrun that tests harm, start again and compare to the bit with a run that nothing happened to.

A `Lab` holds little shards and the undisturbed runs; each test works in its own `Cell`, a folder with a copy of the
shards, a config and a run.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launches import Training
from made_samples import build_directory, build_sample
from worker import Fault

from avff import run_folder
from avff.config import Config, load_config, save_config
from avff.data.samples import Sample
from avff.engine.append_log import read_lines
from avff.engine.metrics_log import TIMING_FIELDS
from avff.files import sha256_of
from avff.strict_yaml import from_dict

NUM_STEPS, SAVE_EVERY, BATCH = 12, 2, 4
NUM_TRAIN_CLIPS, NUM_SHARDS = 40, 4
SAVE_STEP = 4
"""The save that faults happen around; one at step 2 is there before it."""
LAUNCH_STATE = frozenset({"productive_seconds", "first_start_unix", "code_revision"})
"""Of a checkpoint's state, what differs between two launches of one run."""


# ------------------------------------------------------------------------------------------- folders


class Cell:
    """One folder with its own shards, config and run.

    Args:
        runs_dir: where the run goes, if not into the folder.
        overrides: of the config, for all launches.
    """

    def __init__(self, folder: Path, shards: Path, *, runs_dir: Path | None = None, overrides: Sequence[str] = ()):
        self.folder = folder
        self.shards = folder / "shards"
        shutil.copytree(shards, self.shards)
        self.config_path = folder / "config.yaml"
        save_config(make_config(self.shards, runs_dir or folder / "runs"), self.config_path)
        self.config = load_config(self.config_path, overrides)
        save_config(self.config, self.config_path)
        self.num_steps = self.config.optim.num_steps
        self.run_dir = self.config.run_dir

    def fault(self, action: str, moment: str = "start_up", *, save_step: int = SAVE_STEP, **values: Any) -> Fault:
        mark = self.folder / f"happened-{action}-{moment}-{save_step}"
        return Fault(action, str(self.run_dir), str(mark), moment=moment, save_step=save_step, **values)

    def train(self, *faults: Fault, **keywords: Any) -> Training:
        return Training(self.config_path, faults=faults, **keywords)

    def finish(self, *faults: Fault, **keywords: Any) -> str:
        """Trains to the end of the run; returns what was printed."""
        log = self._run_through(faults, keywords, lambda code: code == 0)
        assert (self.exit["code"], self.exit["step"]) == (0, self.num_steps), log
        return log

    def stop(self, *faults: Fault, **keywords: Any) -> str:
        """Trains until the launch fails; returns what was printed."""
        return self._run_through(faults, keywords, lambda code: code != 0)

    def _run_through(
        self, faults: Sequence[Fault], keywords: dict[str, Any], is_expected: Callable[[int], bool]
    ) -> str:
        with self.train(*faults, **keywords) as training:
            assert is_expected(training.wait()), training.log[-6000:]
            happened = [fault for fault in faults if Path(fault.mark).exists()]
            assert happened == list(faults), training.log[-6000:]
            training.wait_for(lambda: not training.pids(), seconds=10)  # loader workers end with their rank
            return training.log

    @property
    def exit(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "exit.json").read_text())

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return read_lines(self.run_dir / "ledger.jsonl")

    @property
    def checkpoints(self) -> set[str]:
        """Names of what lies in the run's folder of checkpoints."""
        return {path.name for path in (self.run_dir / run_folder.CHECKPOINTS).glob("*")}


def make_samples() -> list[Sample]:
    train = [build_sample(f"train{i:02d}") for i in range(NUM_TRAIN_CLIPS)]
    return train + [build_sample(f"val{i:02d}", split="val") for i in range(4)]


def make_config(shards: Path, runs_dir: Path) -> Config:
    source = [{"path": str(shards)}]
    values = {
        "name": "run",
        "stage": "pretrain",
        "runs_dir": str(runs_dir),
        "clip": {"num_frames": 8, "image_size": 32, "hop_samples": 100, "num_mel_bins": 32, "num_slices": 4},
        "model": {"size": "tiny", "critic_width": 32},
        "pretrain": {"contrastive_group_size": BATCH},
        "data": {"train": source, "validation": source, "num_workers": 1, "prefetch_steps": 1},
        "optim": {"num_steps": NUM_STEPS, "warmup_steps": 2, "learning_rate": 1e-3, "ema_decay": 0.9},
        "engine": {
            "global_batch_size": BATCH,
            "micro_batch_size": 2,
            "precision": "fp32",
            "num_threads": 1,
            "checkpoint_every_steps": SAVE_EVERY,
            "validate_every_steps": 6,
        },
        "faults": {"max_substituted_fraction": 0.5},
        "logging": {"progress": False, "wandb": "disabled", "log_every_steps": 1, "panel_every_steps": 0},
    }
    return from_dict(Config, values, where="tests/faults")


class Lab:
    """Shards and undisturbed runs, made when they are first asked for.

    Args:
        overrides: of the config of all cells.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = ()):
        self.folder = folder
        self.overrides = overrides
        self._references: dict[str, Cell] = {}

    def cell(self, name: str, **keywords: Any) -> Cell:
        folder = self.folder / name
        folder.mkdir(parents=True)
        return Cell(folder, self.shards, overrides=self.overrides, **keywords)

    @property
    def shards(self) -> Path:
        path = self.folder / "original_shards"
        if not path.exists():
            build_directory(path, make_samples(), num_shards=NUM_SHARDS)
        return path

    def reference(
        self, name: str = "undisturbed", prepare: Callable[[Cell], Sequence[Fault]] = lambda _: (), **keywords: Any
    ) -> Cell:
        """Returns a cell whose run went from start to end in one launch.

        Args:
            prepare: makes its data bad, or returns the faults that belong to it.
        """
        if name not in self._references:
            cell = self.cell(f"reference_{name}")
            cell.finish(*prepare(cell), **keywords)
            self._references[name] = cell
        return self._references[name]


# ------------------------------------------------------------------------------------------- comparing


def differences(cell: Cell, reference: Cell, *, ignored_ledger_fields: Sequence[str] = ()) -> list[str]:
    """Compares final weights, moving average, optimizer, critics, state, metrics and ledger, all of them to the bit."""
    found = [f"{name}: differs" for name in _different(final_files(cell), final_files(reference))]
    found += [f"state.json: {name} differs" for name in _different(_final_state(cell), _final_state(reference))]
    for name, ignored in (("metrics.jsonl", TIMING_FIELDS), ("ledger.jsonl", ignored_ledger_fields)):
        lines, expected = _lines(cell, name, ignored), _lines(reference, name, ignored)
        if len(lines) != len(expected):
            found.append(f"{name}: {len(lines)} lines, the reference has {len(expected)}")
        pairs = zip(lines, expected, strict=False)
        found += [f"{name}: {line} instead of {other}" for line, other in pairs if line != other]
    return found


def _different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def final_files(cell: Cell) -> dict[str, str]:
    """Returns the sha256 of each file with tensors in the last checkpoint."""
    directory = run_folder.checkpoint_dir(cell.run_dir, cell.num_steps)
    return {str(path.relative_to(directory)): sha256_of(path) for path in directory.rglob("*.safetensors")}


def _final_state(cell: Cell) -> dict[str, Any]:
    path = run_folder.checkpoint_dir(cell.run_dir, cell.num_steps) / run_folder.STATE
    state = json.loads(_placeless(cell, path.read_text()))
    return {name: value for name, value in state.items() if name not in LAUNCH_STATE}


def _lines(cell: Cell, name: str, ignored: Sequence[str] | frozenset[str]) -> list[dict[str, Any]]:
    path = cell.run_dir / name
    lines = _placeless(cell, path.read_text()).splitlines() if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in ignored} for line in lines]


def _placeless(cell: Cell, text: str) -> str:
    """Takes out of a text where the cell's folders happen to lie."""
    return text.replace(str(cell.folder), "CELL")
