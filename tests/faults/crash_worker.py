"""The two programs of test_crash_consistency.py.

crash_worker.py record RUN MARKS          on all ranks, under strace: saves a toy twice, keeping one checkpoint
crash_worker.py check TRACE RUN MARKS OUT finds and loads what each crash in between would have left
"""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lost_writes import Disk, Tree, policies, read_trace

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "workers"))

from zero_worker import config_of, make_updater, state_of, train

from avff import distributed
from avff.engine import checkpoint, process
from avff.engine.saver import Saver
from avff.engine.update import Updater

ALLOWED = {0: {None, 1}, 1: {1, 2}, 2: {2}}
"""Saves that had returned before the crash -> steps that may be found after it; None where there is no checkpoint."""
NUM_RANDOM = 4


def full_state(updater: Updater) -> dict[str, torch.Tensor]:
    return {f"{t.name}/{name}": tensor for t in updater.trainables for name, tensor in state_of(t).items()}


def record(run_dir: Path, marks: Path) -> None:
    updater = make_updater(1, "fp32", process.start(config_of("fp32")))
    saver = Saver(run_dir, updater.trainables, keep=1, keep_every=0, overlap=False)
    for step in (1, 2):
        train(updater, step - 1, step)
        state = full_state(updater)
        assert saver.begin(step, {"step": step}, {"step": step}, lambda: None)[0].committed
        if distributed.is_main():
            torch.save(state, marks.with_name(f"state-{step}.pt"))
            (marks / f"saved-{step}").mkdir()
        distributed.barrier()
    process.end(0)


class Checker:
    """Lays out trees in a folder and looks what a restarted run makes of them."""

    def __init__(self, folder: Path, states: dict[int, dict[str, torch.Tensor]]):
        self.folder = folder
        self.states = states
        self.updater = make_updater(1, "fp32", process.start(config_of("fp32")), seed=99)
        self._found: dict[int, int | str | None] = {}

    def find(self, tree: Tree) -> int | str | None:
        """Returns the step that is found and loaded, None for no checkpoint, or what is wrong."""
        key = hash(tuple(sorted(tree.items())))
        if key not in self._found:
            self._found[key] = self._load(tree)
        return self._found[key]

    @property
    def num_trees(self) -> int:
        return len(self._found)

    def _load(self, tree: Tree) -> int | str | None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, content in tree.items():
            path = self.folder / name
            path.mkdir() if content is None else path.write_bytes(content)
        newest = checkpoint.find_newest(self.folder)
        if newest is None:
            return None
        step = int(newest.name.removeprefix("step-"))
        checkpoint.load(newest, self.updater.trainables)
        loaded = full_state(self.updater)
        is_equal = all(torch.equal(loaded[name], tensor) for name, tensor in self.states[step].items())
        return step if is_equal else f"{newest.name} was loaded, but is not what was saved"


def check(trace: Path, run_dir: Path, marks: Path, output: Path) -> None:
    logging.getLogger("avff").setLevel(logging.CRITICAL)  # damage is what this is about
    operations = list(read_trace(trace, run_dir, marks))
    states = {step: torch.load(marks.with_name(f"state-{step}.pt")) for step in (1, 2)}
    checker = Checker(output.with_suffix(".scratch"), states)
    results: dict[str, Any] = {"num_operations": len(operations)}
    for syncs in (True, False):
        disk, num_saved, wrong = Disk(syncs=syncs), 0, []
        for number, operation in enumerate(operations):
            if operation.kind == "mark":
                num_saved += 1
            else:
                disk.apply(operation)
            for name, keeps in policies(NUM_RANDOM, seed=number).items():
                found = checker.find(disk.tree(keeps))
                if found not in ALLOWED[num_saved]:
                    wrong.append(f"after operation {number} {operation.kind} {operation.path}, {name}: found {found}")
        results["wrong" if syncs else "wrong_without_fsync"] = wrong
        results["num_saved"] = num_saved
    results["num_trees"] = checker.num_trees
    left = disk.tree(lambda node: True)
    results["model_is_exact"] = left == {
        str(path.relative_to(run_dir)): None if path.is_dir() else path.read_bytes() for path in run_dir.rglob("*")
    }
    output.write_text(json.dumps(results))
    process.end(0)


if __name__ == "__main__":
    {"record": record, "check": check}[sys.argv[1]](*map(Path, sys.argv[2:]))
