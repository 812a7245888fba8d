"""Kills random ranks of real training runs at random moments, until a number of kills is reached.

    python tests/faults/soak.py --kills 100 [--seed 0]

Each run is started again by the same command after every kill of a rank, until it is finished; then its final weights,
moving average, optimizer, critics, metrics and ledger have to be those of a run that was left alone, to the bit. One
kill in five comes while processes start, the others at any moment of the training: updates, saves, validation. Prints
what was killed and when, and figures at the end; exits 1 at the first difference, and leaves that run to look at.
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest does it for tests
from harness import Cell, Lab, differences
from launches import Training, kill

from avff.run_folder import committed_steps

OVERRIDES = [
    "optim.num_steps=120",
    "engine.checkpoint_every_steps=5",
    "engine.validate_every_steps=20",
    # Kills during start-up are wanted here, so a row of starts without a new checkpoint is no reason to refuse.
    "faults.max_failed_starts=1000000",
]
START_SECONDS, LONGEST_WAIT_SECONDS, LAST_WORDS_SECONDS = 6.0, 4.0, 10.0
"""Which moments of a start are hit; longest time in which training is left alone; what a launch may take to notice
that a rank is gone, before all of it is killed."""

VICTIMS: dict[str, Callable[[Training], list[int]]] = {
    "rank 0": lambda training: [pid for rank, pid in training.rank_pids().items() if rank == 0],
    "rank 1": lambda training: [pid for rank, pid in training.rank_pids().items() if rank == 1],
    "loader worker": Training.worker_pids,
}


class Soak:
    """Kills until enough is enough.

    Attributes:
        kills: what was hit, and the newest checkpoint then; -1 while processes started.
        num_launches: of all runs together.
        num_runs: that were finished and compared.
    """

    def __init__(self, lab: Lab, num_kills: int, seed: int):
        self.lab = lab
        self.num_kills = num_kills
        self.random = random.Random(seed)
        self.kills: list[tuple[str, int]] = []
        self.num_launches = self.num_runs = 0

    def run(self) -> None:
        """Raises SystemExit at the first difference."""
        while len(self.kills) < self.num_kills:
            cell = self.lab.cell(f"run-{self.num_runs}")
            while cell.num_steps not in committed_steps(cell.run_dir):
                self._launch(cell)
            found = differences(cell, self.lab.reference())
            if found:
                sys.exit(f"{cell.folder}: differs from the undisturbed run:\n" + "\n".join(found))
            print(f"run {self.num_runs} is finished and equal to the undisturbed one to the bit", flush=True)
            self.num_runs += 1
            shutil.rmtree(cell.folder)

    def _launch(self, cell: Cell) -> None:
        self.num_launches += 1
        with cell.train() as training:
            is_whole = True
            if self.random.random() < 0.2:
                is_whole = self._kill_after(cell, training, START_SECONDS)
            else:
                training.wait_for(lambda: "at step" in training.log or training.has_ended)
            while is_whole and not training.has_ended and len(self.kills) < self.num_kills:
                is_whole = self._kill_after(cell, training, LONGEST_WAIT_SECONDS)
            if is_whole and training.wait() != 0:
                sys.exit(f"{cell.folder}: ended although no rank was killed\n{training.log[-6000:]}")

    def _kill_after(self, cell: Cell, training: Training, longest_seconds: float) -> bool:
        """Waits for a random time and kills what is then there; returns whether all ranks are still there."""
        seconds, what = self.random.uniform(0, longest_seconds), self.random.choice([*VICTIMS])
        training.pause(seconds)
        victims = VICTIMS[what](training)[:1]
        for pid in victims:
            kill(pid)
            steps = committed_steps(cell.run_dir)
            self.kills.append((what, max(steps, default=0) if "at step" in training.log else -1))
            print(f"kill {len(self.kills)}: {what}, newest checkpoint {self.kills[-1][1]}", flush=True)
        if not victims or what == "loader worker":
            return True
        training.pause(LAST_WORDS_SECONDS)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="processes to kill (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and victims (default: 0)")
    options = parser.parse_args()
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="avff-soak-"))
    soak = Soak(Lab(folder, OVERRIDES), options.kills, options.seed)
    soak.run()
    shutil.rmtree(folder)
    print(
        f"seed {options.seed}: {len(soak.kills)} kills in {soak.num_launches} launches of {soak.num_runs} runs, "
        f"{time.monotonic() - start:.0f} s; every run ended bit-identical to the undisturbed one"
    )
    print("victims:", dict(Counter(what for what, _ in soak.kills)))
    print(
        "newest checkpoint at the kill, -1 for a start:", dict(sorted(Counter(step for _, step in soak.kills).items()))
    )


if __name__ == "__main__":
    main()
