"""Holds the lock of a parts folder until it is killed; says so in a line. Argument: the folder."""

import signal
import sys
from pathlib import Path

from avff.building import locks

if __name__ == "__main__":
    with locks.hold(Path(sys.argv[1]), shared=False):
        print("held", flush=True)
        signal.pause()
