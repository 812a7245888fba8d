"""Real training under torchrun that tests harm, start again and compare to the bit with a run that nothing happened to.

A `Lab` holds little shards and the undisturbed runs; each test works in its own `Cell`, a folder with a copy of the
shards, a config and a run.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compare_runs
from launches import Training
from little_runs import build_shards, make_config
from worker import Fault

from avff import run_folder
from avff.config import load_config, save_config
from avff.json_lines import read_lines

SAVE_STEP = 4
"""The save that faults happen around; one at step 2 is there before it."""


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
            training.wait_for(lambda: not training.pids())  # loader workers end with their rank
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
            build_shards(path)
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
    """Compares the ends of two cells' runs to the bit."""
    folders = (cell.folder, reference.folder)
    return compare_runs.differences(
        cell.run_dir, reference.run_dir, folders=folders, ignored_ledger_fields=ignored_ledger_fields
    )
