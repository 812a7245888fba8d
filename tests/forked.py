"""Processes of this project that are there at once: forks of one that has imported torch, DeepSpeed and wandb already.

A rank spends 6 s of a core on imports before its first step, a process of wandb's 3 s. A fork is a process as any
other: with its own process group, threads, signals and exit code, and nothing in it but modules.

    with Forks() as forks:
        codes = forks.run("workers/run_worker.py", "jobs.json", num_ranks=2, output=folder / "printed.txt")

This file is also what runs: it takes a line of JSON per launch, and answers with a line of exit codes.
"""

import atexit
import importlib
import json
import os
import random
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from free_ports import free_ports

ROOT = Path(__file__).parents[1]
IMPORTED = ("avff.engine.train", "deepspeed.runtime.zero.muon.muon_optimizer", "wandb")
"""The second is what the first engine imports, and with it most of torch.compile."""


class Forks:
    """Starts programs as forks; the process that they come from ends with this object."""

    def __init__(self) -> None:
        # One thread per rank. NVML, not CUDA, is asked for GPUs: what has initialised CUDA cannot be forked.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def run(
        self,
        script: Path,
        *arguments: object,
        output: Path,
        num_ranks: int = 1,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: int = 1800,
    ) -> list[int]:
        """Runs a script to its end and returns the exit code of each rank, as `subprocess` has them.

        Args:
            output: file that takes what all ranks print.
            num_ranks: with more than one, each has the variables that torchrun sets; the first to fail ends the others.
            environment: all variables of the processes, if not this one's.
            timeout_seconds: after which ALRM kills them.
        """
        launch = {
            "words": [str(script), *map(str, arguments)],
            "output": str(output),
            "environment": {**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"},
            "ranks": [{}] if num_ranks == 1 else _variables_of_ranks(num_ranks),
            "timeout_seconds": timeout_seconds,
        }
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(launch) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def _variables_of_ranks(num_ranks: int) -> list[dict[str, str]]:
    (port,) = free_ports(1)
    shared = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = ({**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(num_ranks))
    return [{name: str(value) for name, value in variables.items()} for variables in ranks]


# ------------------------------------------------------------------------------------------- what runs


def _serve() -> None:
    """Forks until nobody asks any more; a fork ends within `_become`."""
    answers = os.dup(1)
    os.dup2(2, 1)  # for what libraries print
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        launch = json.loads(line)
        ranks: dict[int, int] = {}
        for number, variables in enumerate(launch["ranks"]):
            process = os.fork()
            if process == 0:
                os.close(answers)
                _become(launch, variables)
            ranks[process] = number
        os.write(answers, (json.dumps(_wait_for(ranks)) + "\n").encode())
    _leave()


def _become(launch: dict[str, Any], variables: dict[str, str]) -> NoReturn:
    """Turns this fork into the program that was asked for; what that raises ends the process as any other."""
    signal.alarm(launch["timeout_seconds"])
    os.environ.clear()
    os.environ.update(launch["environment"] | variables)
    for name, mode, numbers in ((os.devnull, os.O_RDONLY, [0]), (launch["output"], os.O_WRONLY | os.O_APPEND, [1, 2])):
        file = os.open(name, mode | os.O_CREAT)
        for number in numbers:
            os.dup2(file, number)
        os.close(file)
    random.seed()  # what every new process does
    sys.argv = launch["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    _leave()


def _leave() -> NoReturn:
    """Ends as an interpreter does, but for taking its modules apart, which would be 2 s of a core."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _wait_for(ranks: dict[int, int]) -> list[int]:
    """Returns the exit codes in the order of ranks."""
    codes: dict[int, int] = {}
    while len(codes) < len(ranks):
        process, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        codes[ranks[process]] = code
        if code:
            for other in (pid for pid, number in ranks.items() if number not in codes):
                os.kill(other, signal.SIGTERM)
    return [codes[number] for number in sorted(codes)]


if __name__ == "__main__":
    _serve()
