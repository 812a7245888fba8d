"""Checkpoints: the seconds for which a save holds up training, against its whole duration.

Trains a stack of linear layers and saves it, with training going on meanwhile (overlap 1) and without (overlap 0),
on each number of ranks over gloo or NCCL. blocked_ratio is the share of a save for which training stands still, and
slower_steps how many times as long a step takes while files are written, which on a machine whose cores the ranks
fill is the price of overlapping. Near or below 1 it is too small to tell, as with few --parameters, whose files are
written within a step or two; `-` where no step was made meanwhile. A save is 16 bytes per parameter and the weight
files another 8.
"""

import argparse
import json
import subprocess
import sys

from avff.bench.report import write_report
from avff.errors import TrainingError

WORKER = "avff.bench.saves_worker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parameters", type=int, default=20_000_000, help="weights of the model that is saved (default 20 million)"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes (default 1 2)")
    parser.add_argument("--saves", type=int, default=3, help="saves of each kind, medians are shown (default 3)")


def run(arguments: argparse.Namespace) -> str:
    """Starts `saves_worker` for each number of ranks and returns the table."""
    rows = []
    for num_ranks in arguments.ranks:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        output = arguments.folder / f"saves-{num_ranks}.json"
        words = [arguments.folder / "saves", output, arguments.parameters, arguments.saves]
        arguments.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([sys.executable, *launcher, "-m", WORKER, *map(str, words)], check=False)
        if done.returncode:
            raise TrainingError(f"{WORKER} on {num_ranks} ranks ended with code {done.returncode}, see above")
        rows += json.loads(output.read_text())
    about = {"parameters": arguments.parameters, "saves": arguments.saves, "folder": str(arguments.folder)}
    return write_report(arguments.folder / "checkpoint.json", rows, about)
