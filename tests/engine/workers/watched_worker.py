"""A stand-in for training, in which one thing goes wrong: ranks that meet in a collective under a watchdog.

Arguments: the run folder, hang_seconds, what goes wrong in which rank, as in `frozen:1`:

    fine       nothing
    frozen     stops as a whole in the middle of a step
    killed     dies at once
    stuck      waits for ever in native code while it reads data; its threads live
    raising    raises an error of its own
    refusing   every rank raises the same error, as after an agreement
    waiting    no rank is behind: all wait in a collective that does not return
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from avff import distributed
from avff.config import Config, EngineConfig, FaultsConfig
from avff.engine import process, run_state
from avff.engine.signals import StopFlag
from avff.engine.watchdog import HANG_EXIT_CODE, Watchdog
from avff.errors import ConfigError, describe, exit_code

FAULTY_STEP = 3


def work(watchdog: Watchdog, run_dir: Path, fault: str) -> None:
    for step in range(6):
        watchdog.mark("reading data", step)
        if step == FAULTY_STEP:
            go_wrong(fault, run_dir)
        watchdog.mark("computing", step)
        dist.all_reduce(torch.ones(1))


def go_wrong(fault: str, run_dir: Path) -> None:
    kind, rank = fault.split(":")
    if kind == "refusing":
        raise ConfigError("the same is wrong everywhere")
    if int(rank) == distributed.rank():
        match kind:
            case "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raising":
                raise KeyError("a bug")
            case "stuck":
                os.mkfifo(run_dir / "fifo")
                (run_dir / "fifo").open("rb")  # nobody ever writes to it


def main(folder: str, hang_seconds: str, fault: str) -> None:
    run_dir = Path(folder)
    engine, faults = EngineConfig(num_threads=1), FaultsConfig(hang_seconds=float(hang_seconds))
    process.start(Config(name="watched", stage="pretrain", engine=engine, faults=faults))

    def on_hang(sentence: str, step: int) -> None:
        run_state.write_exit(run_dir, reason=sentence, code=HANG_EXIT_CODE, step=step, rank=distributed.rank())

    # The flag outermost: the launcher sends TERM to the others as soon as one rank is gone.
    with StopFlag(), Watchdog(float(hang_seconds), on_hang) as watchdog:
        try:
            work(watchdog, run_dir, fault)
        except Exception as error:
            last = watchdog.last_words(error)
            reason, code = describe(last.error), exit_code(last.error)
            run_state.write_exit(run_dir, reason=reason, code=code, step=watchdog.step, rank=distributed.rank())
            process.fail(*last)
            raise
        if distributed.is_main():
            run_state.write_exit(run_dir, reason="finished", code=0, step=6)
        process.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
