"""Kills random ranks of real training runs at random moments, until a number of kills is reached.

    python tests/faults/soak.py --kills 100 [--seed 0]

Each run is started again by the same command after every kill, until it is finished; then its final weights, moving
average, optimizer, critics, metrics and ledger have to be those of a run that was left alone, to the bit. A kill comes
after a random time, which covers the start of the processes and all of the training. Prints what was killed and when,
and figures at the end; exits 1 at the first difference.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from harness import NUM_STEPS, Cell, Lab, Training, differences, kill

from avff.run_folder import committed_steps

# Kills during start-up are part of it, so a row of starts without a new checkpoint is no sign of anything.
OVERRIDES = ["faults.max_failed_starts=1000000"]


VICTIMS: dict[str, Callable[[Training], list[int]]] = {
    "rank 0": lambda training: [pid for rank, pid in training.rank_pids().items() if rank == 0],
    "rank 1": lambda training: [pid for rank, pid in training.rank_pids().items() if rank == 1],
    "loader worker": Training.worker_pids,
}


class Soak:
    """Kills until enough is enough.

    Attributes:
        kills: what was hit, and which step was then the newest checkpoint.
        num_launches: of all runs together, the undisturbed one included.
        num_runs: that were finished and compared.
    """

    def __init__(self, lab: Lab, num_kills: int, seed: int):
        self.lab = lab
        self.num_kills = num_kills
        self.random = random.Random(seed)
        self.kills: list[tuple[str, int]] = []
        self.num_launches = self.num_runs = 0
        start = time.monotonic()
        self.reference = lab.reference()
        self.launch_seconds = time.monotonic() - start

    def run(self) -> None:
        """Raises SystemExit at the first difference."""
        while len(self.kills) < self.num_kills:
            cell = self.lab.cell(f"run-{self.num_runs}")
            while not self._is_finished(cell):
                with cell.train(overrides=OVERRIDES) as training:
                    self.num_launches += 1
                    if len(self.kills) < self.num_kills:
                        self._kill_one(training)
                    training.wait()
            found = differences(cell, self.reference)
            if found:
                sys.exit(
                    f"run {self.num_runs} differs from the undisturbed one, see {cell.folder}:\n" + "\n".join(found)
                )
            print(f"run {self.num_runs}: finished, equal to the undisturbed one to the bit", flush=True)
            self.num_runs += 1
            shutil.rmtree(cell.folder)

    def _is_finished(self, cell: Cell) -> bool:
        return NUM_STEPS in committed_steps(cell.run_dir)

    def _kill_one(self, training: Training) -> None:
        """Waits for a random time and kills; nothing where training was faster."""
        seconds = self.random.uniform(0, self.launch_seconds)
        what = self.random.choice([*VICTIMS])
        end = time.monotonic() + seconds
        while time.monotonic() < end and training.process.poll() is None:
            time.sleep(0.01)
        for pid in VICTIMS[what](training)[:1]:
            kill(pid)
            steps = committed_steps(training.cell.run_dir)
            self.kills.append((what, steps[-1] if steps else 0))
            print(
                f"kill {len(self.kills)}: {what} after {seconds:.2f} s, newest checkpoint {self.kills[-1][1]}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="processes to kill (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and victims (default: 0)")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="avff-soak-") as folder:
        soak = Soak(Lab(Path(folder)), options.kills, options.seed)
        soak.run()
    print(
        f"seed {options.seed}: {len(soak.kills)} kills in {soak.num_launches} launches of {soak.num_runs} runs of "
        f"{NUM_STEPS} steps, {time.monotonic() - start:.0f} s; every run ended bit-identical to the undisturbed one"
    )
    print("victims:", dict(Counter(what for what, _ in soak.kills)))
    print("newest checkpoint at the kill:", dict(sorted(Counter(step for _, step in soak.kills).items())))


if __name__ == "__main__":
    main()
