"""Starts a whole training run again and again and counts clean ends: `python tests/faults/clean_starts.py --starts 100`.

Each start is a run of its own: two ranks under torchrun, a few updates, a save, code 0. torchrun ends with 0 only when
every rank did, so an abort while a rank is torn down (code -6) counts. Exits 1 unless every end was clean.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest does it for tests
from harness import Lab
from launches import Training

SHORT = ("optim.num_steps=2", "optim.warmup_steps=1", "logging.wandb=offline")  # its threads are part of the end


def start_once(lab: Lab, number: int) -> str:
    """Returns what was unclean about one start, nothing when nothing was."""
    cell = lab.cell(f"start-{number}")
    with Training(cell.config_path, overrides=SHORT) as training:
        code = training.wait()
        log = training.log
    if code != 0 or cell.exit["code"] != 0:
        return f"start {number}: torchrun ended with {code}, exit.json says {cell.exit}\n{log[-3000:]}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=100, help="runs to start, one after the other (default: 100)")
    num_starts = parser.parse_args().starts
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        unclean = [text for text in (start_once(lab, number) for number in tqdm(range(num_starts))) if text]
    print(*unclean, sep="\n")
    clean, seconds = num_starts - len(unclean), (time.monotonic() - began) / num_starts
    print(f"{clean} of {num_starts} starts ended cleanly, {seconds:.1f} s each")
    return 1 if unclean else 0


if __name__ == "__main__":
    sys.exit(main())
