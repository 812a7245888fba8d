"""How a process learns which rank of a launch it is: torch's variables, and SLURM's translated into them.

    RANK, WORLD_SIZE               this process and how many there are
    LOCAL_RANK, LOCAL_WORLD_SIZE   the same on this machine
    MASTER_ADDR, MASTER_PORT       where rank 0 listens

torchrun sets them. Under srun they follow from SLURM's, so `srun avff train CONFIG` needs no launcher in between.
Without either there is one process. `avff.distributed` is the only reader of them.
"""

import os
import re
from collections.abc import MutableMapping
from pathlib import Path

EXIT_CODE_FILE = "AVFF_EXIT_CODE_FILE"
"""Variable naming a file to which every process of a launch adds a line with its code, as torchrun tells nobody."""

FIRST_PORT, NUM_PORTS = 15_000, 17_000
"""Below those that Linux hands out by itself (32768 and up)."""


def adopt_slurm_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets torch's variables from those of an srun step with several tasks; changes nothing elsewhere.

    A job has a port of its own, and each of its restarts another one, which a process that SLURM has not quite ended
    cannot hold any more.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    job, restarts = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_RESTART_COUNT", "0"))
    tasks_here = _per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(tasks_here),
        MASTER_ADDR=first_host(environment["SLURM_STEP_NODELIST"]),
        MASTER_PORT=str(FIRST_PORT + (7 * job + restarts) % NUM_PORTS),
    )


def speaks() -> bool:
    """False in all but the first process that a launcher starts on a machine: all read the same config and refuse it."""
    return os.environ.get("LOCAL_RANK", "0") == "0"  # not from avff.distributed, which imports torch


def note_exit_code(code: int) -> None:
    """Adds a line to the file that AVFF_EXIT_CODE_FILE names, if it is set."""
    if path := os.environ.get(EXIT_CODE_FILE):
        with Path(path).open("a") as file:
            file.write(f"{code}\n")


def first_host(nodes: str) -> str:
    """Returns the first host of a SLURM list: `n[03-05,9],m1` gives `n03`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ValueError(f"no host in {nodes!r}")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def _per_node(counts: str) -> list[int]:
    """Returns the number of tasks of each node: `4(x2),3` gives [4, 4, 3]."""
    matches = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, times in matches for _ in range(int(times or 1))]
