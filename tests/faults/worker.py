"""One rank of a training run in which something goes wrong at an exact moment; in place of `-m avff` under torchrun.

Arguments: a file with a list of `Fault`s as JSON, then those of `avff`.

The product has no hooks for tests: functions of avff are wrapped here, in this process alone, before the rooms that
use them are imported. A fault that happened leaves its mark, so that no test passes because nothing went wrong.
"""

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOMENTS = ("start_up", "before_save", "writing", "committing", "after_save")
"""Data are open and the network is about to be wrapped; the last update before a save; this rank has written a
file of it; rank 0 has checksums of all files and is about to write files.json; a later update finds it committed."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, where and when.

    Attributes:
        action: a key of ACTIONS, or `nan` or `hang`, which change what functions return.
        moment: one of MOMENTS.
        rank: to which it happens.
        run_dir: of the run.
        mark: file that is made when it happens.
        save_step: of the save that `moment` speaks of.
        target: what the action harms: files (a glob pattern), a shard directory, or a pipe.
        steps: for `nan`: updates whose loss is not a number.
        key: for `hang`: the sample that is never read to its end, once the mark is there.
    """

    action: str
    run_dir: str
    mark: str
    moment: str = "start_up"
    rank: int = 0
    save_step: int = 0
    target: str = ""
    steps: tuple[int, ...] = ()
    key: str = ""


# ------------------------------------------------------------------------------------------- what goes wrong


def send(number: signal.Signals) -> Callable[[Fault], None]:
    return lambda fault: os.kill(os.getpid(), number)


def kill_a_loader_worker(fault: Fault) -> None:
    """Kills the first loader process that is there, at once or as soon as there is one, and marks it only then."""
    own, command = os.getpid(), Path("/proc/self/cmdline").read_bytes()
    Path(fault.mark).unlink()

    def loader_workers() -> list[int]:
        children = map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())
        return [pid for pid in children if is_fork(pid)]

    def is_fork(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes() == command
        except (FileNotFoundError, ProcessLookupError):
            return False

    def wait_and_kill() -> None:
        while not (found := loader_workers()):
            time.sleep(0.01)
        os.kill(found[0], signal.SIGKILL)
        Path(fault.mark).touch()

    threading.Thread(target=wait_and_kill, daemon=True).start()


def fail(fault: Fault) -> None:
    raise RuntimeError("broken on purpose")


def targets(fault: Fault) -> list[str]:
    found = glob.glob(fault.target)
    assert found, fault
    return found


def truncate(fault: Fault) -> None:
    for path in targets(fault):
        os.truncate(path, os.path.getsize(path) // 8)


def flip(fault: Fault) -> None:
    for path in targets(fault):
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))


def fill_disk(fault: Fault) -> None:
    """Leaves less room than a checkpoint needs; a save that is being written meanwhile may take the rest."""
    with open(fault.target, "wb") as ballast, contextlib.suppress(OSError):
        while shutil.disk_usage(fault.run_dir).free > 2**19:
            os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), 2**18)


def damage_sample(fault: Fault) -> None:
    """Overwrites the picture of sample `key` in its tar."""
    from avff.data.shards import open_directory

    directory = open_directory(fault.target)
    row = next(row for row in directory.rows if row.key == fault.key)
    member = next(member for member in row.members if member.name.endswith("mp4"))
    with (directory.path / row.shard).open("r+b") as file:
        file.seek(member.offset)
        file.write(b"\0" * member.length)


ACTIONS: dict[str, Callable[[Fault], None]] = {
    "kill": send(signal.SIGKILL),
    "freeze": send(signal.SIGSTOP),
    "term": send(signal.SIGTERM),
    "usr2": send(signal.SIGUSR2),
    "kill_a_loader_worker": kill_a_loader_worker,
    "fail": fail,
    "truncate": truncate,
    "flip": flip,
    "fill_disk": fill_disk,
    "free_disk": lambda fault: os.unlink(fault.target),
    "damage_sample": damage_sample,
    "hang": lambda fault: None,  # its mark is all that `hang_on` waits for
}


# ------------------------------------------------------------------------------------------- when


class Trigger:
    """Lets a fault happen once."""

    def __init__(self, fault: Fault):
        self.fault = fault
        self.happened = False

    def __call__(self) -> None:
        if not self.happened:
            self.happened = True
            Path(self.fault.mark).touch()
            sys.stderr.write(f"rank {os.environ['RANK']}: {self.fault.action}, {self.fault.moment}\n")
            sys.stderr.flush()
            ACTIONS[self.fault.action](self.fault)


def before(owner: Any, name: str, hook: Callable[..., None]) -> None:
    """Calls `hook` with the arguments of a function each time before it runs."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        hook(*arguments, **keywords)
        return original(*arguments, **keywords)

    setattr(owner, name, wrapped)


class Clock:
    """Tells when a fault's moment has come."""

    def __init__(self, fault: Fault):
        from avff.run_folder import COMMIT, FILES, UNFINISHED, checkpoint_dir

        self.moment, self.save_step = fault.moment, fault.save_step
        self.trigger = Trigger(fault)
        final = checkpoint_dir(Path(fault.run_dir), fault.save_step)
        self.commit = final / COMMIT
        self.unfinished = final.with_name(final.name + UNFINISHED)
        self.files = self.unfinished / FILES

    def at_path(self, path: Path, *_: Any) -> None:
        """A file is about to be made durable."""
        written = self.moment == "writing" and self.unfinished in path.parents and path.suffix == ".safetensors"
        if written or (self.moment == "committing" and path == self.files):
            self.trigger()

    def at_update(self, _: Any, step: int, *arguments: Any, **keywords: Any) -> None:
        before_save = self.moment == "before_save" and step == self.save_step - 1
        if before_save or (self.moment == "after_save" and self.commit.is_file()):
            self.trigger()

    def at_start_up(self, *arguments: Any, **keywords: Any) -> None:
        if self.moment == "start_up":
            self.trigger()


def arm(faults: Sequence[Fault]) -> None:
    """Waits for each fault's moment; faults of one moment happen in their order."""
    import avff.files

    clocks = [Clock(fault) for fault in faults]
    for clock in reversed(clocks):  # what is wrapped last runs first
        before(avff.files, "sync", clock.at_path)
        before(avff.files, "write_durably", clock.at_path)
    from avff.engine.trainable import Trainable
    from avff.engine.update import Updater

    for clock in reversed(clocks):
        before(Updater, "update", clock.at_update)
        before(Trainable, "__init__", clock.at_start_up)


def poison_losses(fault: Fault) -> None:
    """Makes the loss of some updates not a number on this rank."""
    import torch

    from avff.engine.update import Updater
    from avff.objectives.pretrain import PretrainObjective

    step_now = [-1]
    before(Updater, "update", lambda _, step, *__, **___: step_now.__setitem__(0, step))
    original = PretrainObjective.model_losses

    def model_losses(*arguments: Any, **keywords: Any) -> Any:
        losses = original(*arguments, **keywords)
        if step_now[0] not in fault.steps:
            return losses
        Path(fault.mark).touch()
        return losses._replace(
            total=losses.total * torch.nan, terms={**losses.terms, "loss": losses.terms["loss"] * torch.nan}
        )

    PretrainObjective.model_losses = model_losses


def hang_on(fault: Fault) -> None:
    """Once the fault's mark is there, opens a pipe that nobody writes to instead of reading one sample."""
    import avff.data.shards

    def hang(_: Any, row: Any) -> None:
        if row.key == fault.key and Path(fault.mark).exists():
            os.close(os.open(fault.target, os.O_RDONLY))

    before(avff.data.shards, "read_sample", hang)


def main(faults_path: str, *arguments: str) -> int:
    faults = [Fault(**values) for values in json.loads(Path(faults_path).read_text())]
    own = [fault for fault in faults if fault.rank == int(os.environ["RANK"])]
    for fault in faults:
        if fault.action == "hang":
            hang_on(fault)
    arm([fault for fault in own if fault.action != "nan"])
    for fault in own:
        if fault.action == "nan":
            poison_losses(fault)
    from avff.cli import main as avff_main

    return avff_main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
