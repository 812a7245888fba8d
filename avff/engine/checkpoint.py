"""Which checkpoints there are: the newest whole one is found, loaded, set aside or pruned, by all ranks together.

A checkpoint is one canonical state by parameter name (avff.checkpoint_files), and loading reads the pieces that
overlap a rank's own fragments, so any ZeRO stage and number of ranks can load it. This replaces DeepSpeed's files,
which load only where the stage and the number of ranks are the same, or wrongly; hyperparameters follow from the
config and the step. Checkpoints are written by avff.engine.saver.
"""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from avff import distributed, run_folder
from avff.checkpoint_files import CanonicalState
from avff.engine import agreement
from avff.engine.trainable import Trainable
from avff.errors import CheckpointError
from avff.files import sync
from avff.models.weights import load_weights

logger = logging.getLogger(__name__)

DAMAGED = ".damaged"
REWOUND = ".rewound"


def find_newest(run_dir: Path) -> Path | None:
    """Returns the newest checkpoint that is whole on every rank, None when there is none; a collective.

    A damaged checkpoint is renamed to `step-N.damaged`, named in the log, and the one before it is tried.
    """
    for step in agreement.on_main(lambda: _tidy(run_dir))[::-1]:
        directory = run_folder.checkpoint_dir(run_dir, step)
        problems = _find_problems(directory)
        if not problems:
            return directory
        logger.warning("checkpoint step-%d is damaged, falling back to the one before: %s", step, "; ".join(problems))
        agreement.on_main(partial(_rename, directory, DAMAGED))
    return None


def load(directory: Path, trainables: Sequence[Trainable]) -> None:
    """Restores what `find_newest` found, at the start or in the middle of a process; a collective."""

    def read() -> list[int]:
        _read_buffers(directory / run_folder.WEIGHTS, trainables[0])
        return [_read(directory / trainable.name, trainable) for trainable in trainables]

    num_updates = agreement.everywhere(read)
    for trainable, count in zip(trainables, num_updates, strict=True):
        trainable.restore(count)


def set_aside(run_dir: Path, *, newer_than: int, suffix: str) -> list[int]:
    """Renames the checkpoints of later steps to `step-N<suffix>`, so that a run starts from an earlier one; a collective.

    Returns:
        their steps, oldest first. On the disk once this returns; the newest goes first, so that a crash meanwhile
        leaves the older part of them.
    """

    def rename() -> list[int]:
        steps = [step for step in run_folder.committed_steps(run_dir) if step > newer_than]
        for step in reversed(steps):
            _rename(run_folder.checkpoint_dir(run_dir, step), suffix)
        return steps

    return agreement.on_main(rename)


def prune(run_dir: Path, *, keep: int, keep_every: int) -> None:
    """Deletes checkpoints that are not to be kept; for one process, after a commit.

    Args:
        keep: newest ones to keep, besides the best by validation.
        keep_every: steps that are multiples of this are kept as well; 0 for none.

    One whose state cannot be read is set aside instead: it might be the best.

    Raises:
        OSError: one could not be deleted; nothing that is to be kept was touched.
    """
    _set_unreadable_aside(run_dir)
    steps = run_folder.committed_steps(run_dir)
    kept = {*steps[-keep:], run_folder.best_step(run_dir)}
    if keep_every:
        kept |= {step for step in steps if step % keep_every == 0}
    for step in steps:
        if step not in kept:
            # First it ceases to be a checkpoint, so that a crash while it is deleted leaves no half one behind.
            shutil.rmtree(_rename(run_folder.checkpoint_dir(run_dir, step), run_folder.UNFINISHED))


def _set_unreadable_aside(run_dir: Path) -> None:
    for step in run_folder.committed_steps(run_dir):
        directory = run_folder.checkpoint_dir(run_dir, step)
        try:
            run_folder.read_state(directory)
        except CheckpointError as error:
            logger.warning("checkpoint step-%d is damaged and set aside: %s", step, error)
            _rename(directory, DAMAGED)


def _rename(directory: Path, suffix: str) -> Path:
    """Takes a folder out of the checkpoints, durably; replaces one of the same name, from an earlier time."""
    target = directory.with_name(directory.name + suffix)
    if target.exists():
        shutil.rmtree(target)
    directory.rename(target)
    sync(target.parent)
    return target


def _tidy(run_dir: Path) -> list[int]:
    """Clears the way for saves after one that was cut off; returns the steps of complete checkpoints."""
    for unfinished in (run_dir / run_folder.CHECKPOINTS).glob(f"step-*{run_folder.UNFINISHED}"):
        shutil.rmtree(unfinished)
    for directory in run_folder.uncommitted_folders(run_dir):
        # Torn by a copy. In its place, this step could never be saved again.
        logger.warning("checkpoint %s has no %s and is set aside", directory.name, run_folder.COMMIT)
        _rename(directory, DAMAGED)
    return run_folder.committed_steps(run_dir)


def _find_problems(directory: Path) -> list[str]:
    """Verifies on all ranks together, each reading its share of the contents; a collective."""
    rank, world_size = distributed.rank(), distributed.world_size()
    own = run_folder.find_problems(directory, rank=rank, world_size=world_size)
    return list(dict.fromkeys(problem for share in distributed.gather_objects(own) for problem in share))


def _read_buffers(path: Path, model: Trainable) -> None:
    """Fills what is no parameter of the model, such as what is frozen, from the consolidated weights."""
    buffers = model.persistent_buffers()
    if buffers:
        tensors, _ = load_weights(path)
        for name, buffer in buffers.items():
            buffer.copy_(tensors[name])


def _read(folder: Path, trainable: Trainable) -> int:
    """Fills this rank's fragments; returns the number of updates that the state had seen."""
    state = CanonicalState(folder)
    for fragment in trainable.fragments():
        for key, view in fragment.tensors.items():
            state.read_into(key, fragment.name, fragment.start, view)
    return state.num_updates
