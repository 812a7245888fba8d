"""Saves on two ranks: while training goes on, with a disk that is full on all ranks or on one, and rewinding.

Arguments: output file, folder for runs, a small file system ("" for none), which the worker fills and empties.
"""

import ctypes
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from zero_worker import config_of, make_updater, state_of, train

from avff import checkpoint_files, distributed, run_folder
from avff.checkpoint_files import CanonicalState
from avff.engine import checkpoint, process
from avff.engine.saver import SaveOutcome, Saver
from avff.engine.update import Updater

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_PRIVATE_RECURSIVE = 0x20000, 0x44000


class Held:
    """Writers wait at their first file until `release`, as on a slow disk."""

    def __init__(self, ranks: tuple[int, ...] = (0, 1)):
        self.event = threading.Event()
        self.write = checkpoint_files.write_pieces
        if distributed.rank() in ranks:
            checkpoint_files.write_pieces = self._write

    def _write(self, *arguments) -> None:
        self.event.wait()
        self.write(*arguments)

    def release(self) -> None:
        self.event.set()
        checkpoint_files.write_pieces = self.write


def saver_of(run_dir: Path, updater: Updater, *, keep: int = 9, overlap: bool = True) -> Saver:
    return Saver(run_dir, updater.trainables, keep=keep, keep_every=0, overlap=overlap)


def begin(saver: Saver, step: int, make_durable: Callable[[], None] = lambda: None) -> list[SaveOutcome]:
    return saver.begin(step, {"step": step}, {"step": step}, make_durable)


def advance(saver: Saver) -> SaveOutcome | None:
    """What the loop does after each update."""
    totals = distributed.all_reduce_sum(torch.tensor(saver.votes(), dtype=torch.float64))
    return saver.advance(totals.tolist())


def wait_for_part(saver: Saver) -> None:
    """Waits until all ranks are done with the present part, without taking the save on."""
    while distributed.all_reduce_sum(torch.tensor(saver.votes()))[0] < distributed.world_size():
        pass


def state(updater: Updater) -> list[dict[str, Tensor]]:
    return [state_of(trainable) for trainable in updater.trainables]


def is_equal(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def stored(run_dir: Path, step: int, updater: Updater) -> list[dict[str, Tensor]]:
    folders = [run_folder.checkpoint_dir(run_dir, step) / trainable.name for trainable in updater.trainables]
    states = [CanonicalState(folder) for folder in folders]
    return [{f"{key}/{name}": s.read(key, name) for key in s.keys for name in s.shapes} for s in states]


def folders(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / run_folder.CHECKPOINTS).glob("*"))


# ------------------------------------------------------------------------------------------- scenarios


def overlapped(run_dir: Path, device: torch.device) -> dict:
    """Weights change while the writers are held: what was begun is what is saved."""
    updater = make_updater(1, "fp32", device)
    saver = saver_of(run_dir, updater)
    train(updater, 0, 2)
    before = state(updater)
    held = Held()
    begun = begin(saver, 2)
    outcomes = []
    for step in (2, 3):
        train(updater, step, step + 1)
        outcomes.append(advance(saver))
    during = folders(run_dir)
    held.release()
    wait_for_part(saver)
    agreed = advance(saver)
    wait_for_part(saver)
    last = advance(saver)
    return {
        "begun": begun,
        "while_held": [*outcomes, agreed],
        "folders_while_held": during,
        "outcome": last._asdict(),
        "after": saver.finish(),
        "saved_is_begun": is_equal(stored(run_dir, 2, updater), before),
        "training_went_on": not is_equal(state(updater), before),
        "problems": run_folder.find_problems(run_folder.checkpoint_dir(run_dir, 2)),
    }


def one_slow_rank(run_dir: Path, device: torch.device) -> dict:
    """Rank 1's disk is slow: nobody goes on to the commit before it is done."""
    updater = make_updater(1, "fp32", device)
    saver = saver_of(run_dir, updater)
    held = Held(ranks=(1,))
    begin(saver, 1)
    if distributed.is_main():
        saver._pending.job.wait()
    votes = saver.votes()
    waiting = [advance(saver) for _ in range(3)]
    held.release()
    return {"votes": votes, "waiting": waiting, "committed": saver.finish().committed}


def back_to_back(run_dir: Path, device: torch.device) -> dict:
    """A save begins before the one before it is done, then one that does not overlap."""
    updater = make_updater(1, "fp32", device)
    saver = saver_of(run_dir, updater, keep=2)
    outcomes = [begin(saver, step) for step in (1, 2)]
    outcomes.append([saver.finish()])
    outcomes.append(begin(saver_of(run_dir, updater, keep=2, overlap=False), 3))
    return {
        "outcomes": [[(o.step, o.committed, o.problems) for o in some] for some in outcomes],
        "folders": folders(run_dir),
    }


def logs_not_durable(run_dir: Path, device: torch.device) -> dict:
    updater = make_updater(1, "fp32", device)
    saver = saver_of(run_dir, updater)

    def fail() -> None:
        if distributed.rank() == 1:
            raise OSError(28, "No space left on device", "metrics.jsonl")

    begin(saver, 1, fail)
    outcome = saver.finish()
    return {"outcome": outcome._asdict(), "folders": folders(run_dir)}


def rewound(run_dir: Path, device: torch.device) -> dict:
    """Loads in the middle of a process; the same steps again give the same bits."""
    results = {}
    for stage in (0, 1, 2, 3):
        updater, folder = make_updater(stage, "fp32", device), run_dir / f"stage{stage}"
        saver = saver_of(folder, updater, overlap=False)
        train(updater, 0, 3)
        begin(saver, 3)
        before = state(updater)
        train(updater, 3, 5)
        first, updates = state(updater), [t.num_updates for t in updater.trainables]
        begin(saver, 5)
        set_aside = checkpoint.set_aside(folder, newer_than=3, suffix=".rewound-1")
        newest = checkpoint.find_newest(folder)
        checkpoint.load(newest, updater.trainables)
        loaded = state(updater)
        train(updater, 3, 5)
        results[stage] = {
            "set_aside": set_aside,
            "folders": folders(folder),
            "loaded": is_equal(loaded, before),
            "repeated": is_equal(state(updater), first),
            "updates": updates == [t.num_updates for t in updater.trainables],
        }
    return results


# ------------------------------------------------------------------------------------------- full disks


def fill(folder: Path) -> Path:
    """Leaves no byte on the folder's file system; returns the file to delete."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return ballast


def mount_full(path: Path) -> None:
    """Lays a full file system of one page over a folder, for this process alone."""
    private = LIBC.unshare(CLONE_NEWNS) or LIBC.mount(None, b"/", None, MS_PRIVATE_RECURSIVE, None)
    if private or LIBC.mount(b"tmpfs", bytes(path), b"tmpfs", 0, b"size=4k"):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    fill(path)


def disk_full(small: Path, device: torch.device) -> dict:
    """A save, one that fails, and once there is room again one more; training goes on all the while."""
    results = {}
    for where in ("everywhere", "in the commit", "on rank 1"):
        run_dir = small / where.replace(" ", "_")
        updater, undisturbed = (make_updater(1, "fp32", device) for _ in range(2))
        saver = saver_of(run_dir, updater, keep=1)
        train(undisturbed, 0, 5)
        train(updater, 0, 2)
        begin(saver, 2)
        first = saver.finish()
        saved = state(updater)
        train(updater, 2, 3)
        failed = save_on_full_disk(saver, small, where)
        left = distributed.gather_objects(folders(run_dir))
        newest = checkpoint.find_newest(run_dir)
        train(updater, 3, 5)
        kept = is_equal(stored(run_dir, 2, updater), saved)
        begin(saver, 5)
        last = saver.finish()
        results[where] = {
            "committed": [outcome.committed for outcome in (first, failed, last)],
            "problems": failed.problems,
            "left": left,
            "newest": newest.name,
            "old_one_is_whole": kept,
            "training_is_undisturbed": is_equal(state(updater), state(undisturbed)),
            "folders": distributed.gather_objects(folders(run_dir)),
        }
        if distributed.is_main():
            for path in (run_dir / run_folder.CHECKPOINTS).iterdir():
                path.rename(small / f"{run_dir.name}-{path.name}")
    return results


def save_on_full_disk(saver: Saver, small: Path, where: str) -> SaveOutcome:
    checkpoints, ballast = saver.run_dir / run_folder.CHECKPOINTS, None
    if where == "on rank 1" and distributed.rank() == 1:
        mount_full(checkpoints)
    if where == "everywhere":
        ballast = distributed.is_main() and fill(small)
        distributed.barrier()
    begin(saver, 3)
    wait_for_part(saver)
    if where == "in the commit":
        ballast = distributed.is_main() and fill(small)
    outcome = saver.finish()
    if ballast:
        ballast.unlink()
    if where == "on rank 1" and distributed.rank() == 1:
        LIBC.umount(bytes(checkpoints))
    distributed.barrier()
    return outcome


SCENARIOS = (overlapped, one_slow_rank, back_to_back, logs_not_durable, rewound)


def main(output: str, folder: str, small: str) -> None:
    device = process.start(config_of("fp32"))
    results = {scenario.__name__: scenario(Path(folder) / scenario.__name__, device) for scenario in SCENARIOS}
    if small:
        results["disk_full"] = disk_full(Path(small), device)
    per_rank = distributed.gather_objects(results)
    if distributed.is_main():
        Path(output).write_text(json.dumps(per_rank))
    process.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
