"""Stand-ins for training in which one thing goes wrong: ranks that meet in collectives under a watchdog.

Arguments: a folder, hang_seconds, and any number of cases such as `frozen:1`, what goes wrong and in which rank. All
cases run at the same time; libraries are imported once and the ranks forked. Per case, `CASE/codes.json` holds the exit
code of each rank (null for one that had to be killed) and `CASE/rank-N.txt` what it printed.

    fine        nothing; ends with code 75
    frozen      stops as a whole in the middle of a step
    paused      the same, but goes on in time
    recovered   is paused for longer than the store waits, goes on, and later waits for ever
    suspended   every rank is paused for longer than a hang
    killed      dies at once
    orphaned    dies at once, and while the others say their last words, their machines stand still twice
    stuck       waits for ever in native code while it reads data; its threads live
    waiting     every rank waits in the same place for ever
    alone       a single process waits for ever
    raising     raises an error that is a bug
    refusing    every rank raises the same error, as after an agreement
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[2]))

import deepspeed  # noqa: F401  # for the ranks, which are forked from here
import torch
import torch.distributed as dist
from free_ports import free_ports

from avff import distributed
from avff.config import Config, EngineConfig, FaultsConfig
from avff.engine import notices, process, run_state, watchdog
from avff.engine.signals import StopFlag
from avff.errors import LOST_RANK_EXIT_CODE, PREEMPTED_EXIT_CODE, ConfigError, describe, exit_code

FAULTY_STEP, LATER_STEP = 3, 5
LONGEST_CASE_SECONDS = 300


class Board(notices.NoticeBoard):
    """Remembers what this rank has heard, of itself too."""

    heard: ClassVar[dict[int, notices.Notice]] = {}

    def post(self, notice: notices.Notice) -> None:
        super().post(notice)
        self.posted = notice

    def read(self, ranks: Sequence[int]) -> list[notices.Notice]:
        found = super().read(ranks)  # an answer: what was posted before is there, too
        self.heard.update({notice.rank: notice for notice in [*found, self.posted]})
        return found


def train(run_dir: Path, hang_seconds: float, fault: str) -> None:
    watchdog.NoticeBoard = Board
    if fault.startswith("recovered"):
        notices.CONNECT_SECONDS = hang_seconds / 4
    engine, faults = EngineConfig(num_threads=1), FaultsConfig(hang_seconds=hang_seconds)
    process.start(Config(name="watched", stage="pretrain", engine=engine, faults=faults))

    def on_hang(sentence: str, step: int) -> None:
        run_state.write_exit(run_dir, reason=sentence, code=LOST_RANK_EXIT_CODE, step=step, rank=distributed.rank())

    # The flag outermost: a launcher sends TERM to the others as soon as one rank is gone.
    with StopFlag(), watchdog.Watchdog(hang_seconds, on_hang) as watching:
        try:
            work(watching, run_dir, hang_seconds, fault)
        except (RuntimeError, KeyError, ConfigError) as error:
            if fault.startswith("orphaned"):
                threading.Thread(target=stand_still_twice, args=(hang_seconds,), daemon=True).start()
            last = watching.last_words(error)
            reason, code = describe(last.error), exit_code(last.error)
            run_state.write_exit(run_dir, reason=reason, code=code, step=watching.step, rank=distributed.rank())
            process.fail(*last)
            raise
        if distributed.is_main():
            run_state.write_exit(run_dir, reason="stopped", code=PREEMPTED_EXIT_CODE, step=watching.step)
        process.end(PREEMPTED_EXIT_CODE)


def work(watching: watchdog.Watchdog, run_dir: Path, hang_seconds: float, fault: str) -> None:
    for step in range(6):
        watching.mark("reading data", step)
        if step == FAULTY_STEP:
            wait_until_all_know(run_dir, step)
            go_wrong(run_dir, hang_seconds, fault)
        if step == LATER_STEP and fault == f"recovered:{distributed.rank()}":
            wait_for_ever(run_dir)
        watching.mark("computing", step)
        dist.all_reduce(torch.ones(1))


def wait_until_all_know(run_dir: Path, step: int) -> None:
    """Waits until every rank's notice says that it is at this step, and all have read that of rank 0."""
    ranks = range(distributed.world_size())
    if len(ranks) == 1:
        return
    while {Board.heard[rank].place.step for rank in (0, distributed.rank()) if rank in Board.heard} != {step}:
        time.sleep(0.05)
    (run_dir / f"knows-{distributed.rank()}").touch()
    while not all((run_dir / f"knows-{rank}").exists() for rank in ranks):
        time.sleep(0.05)


def go_wrong(run_dir: Path, hang_seconds: float, fault: str) -> None:
    kind, rank = fault.split(":")
    if rank != "all" and int(rank) != distributed.rank():
        return
    match kind:
        case "frozen":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "paused" | "recovered":
            pause(hang_seconds / 2)
        case "suspended":
            pause(1.5 * hang_seconds)
        case "killed" | "orphaned":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stuck" | "waiting" | "alone":
            wait_for_ever(run_dir)
        case "raising":
            raise KeyError("a bug")
        case "refusing":
            raise ConfigError("the same is wrong everywhere")


def pause(seconds: float) -> None:
    """Stops this process; a child of it lets it go on."""
    parent = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        os.kill(parent, signal.SIGCONT)
        os._exit(0)
    os.kill(parent, signal.SIGSTOP)


def stand_still_twice(hang_seconds: float) -> None:
    for _ in range(2):
        time.sleep(hang_seconds / 40)
        pause(0.4 * hang_seconds)


def wait_for_ever(run_dir: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(run_dir / "fifo")
    (run_dir / "fifo").open("rb")  # nobody ever writes to it


# ------------------------------------------------------------------------------------------- starting ranks


def start_rank(rank: int, world_size: int, port: int, run_dir: Path, hang_seconds: float, fault: str) -> int:
    """Returns the process of a rank, forked with the variables that a launcher sets."""
    pid = os.fork()
    if pid:
        return pid
    output = os.open(run_dir / f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, sys.stderr.fileno())
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        train(run_dir, hang_seconds, fault)
    except BaseException:  # noqa: BLE001  # a forked copy must not go on with what its parent does
        traceback.print_exc()
    os._exit(99)


def codes_of(pids: list[int], fault: str) -> list[int | None]:
    """Waits until all ranks have ended but the frozen one, which it kills."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + LONGEST_CASE_SECONDS
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif fault.startswith("frozen") and len(codes) == len(pids) - 1 and is_stopped(pid):
                break
        else:
            time.sleep(0.05)
            continue
        break
    for pid in set(pids) - codes.keys():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return [codes.get(pid) for pid in pids]


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def main(folder: str, hang_seconds: str, *cases: str) -> None:
    running: dict[str, list[int]] = {}
    for case, port in zip(cases, free_ports(len(cases)), strict=True):
        run_dir = Path(folder) / case
        run_dir.mkdir()
        world_size = 1 if case.startswith("alone") else 2
        running[case] = [
            start_rank(rank, world_size, port, run_dir, float(hang_seconds), case) for rank in range(world_size)
        ]
    for case, pids in running.items():
        (Path(folder) / case / "codes.json").write_text(json.dumps(codes_of(pids, case)))


if __name__ == "__main__":
    main(*sys.argv[1:])
