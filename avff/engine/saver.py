"""Writes checkpoints while training goes on, on all ranks together or not at all.

A save has three parts, and only the first holds up training:

1. `begin`: every rank copies what it owns to CPU memory.
2. Every rank's thread writes its fragments, makes them durable and sums them up.
3. Rank 0's thread puts the weight files together from the fragments, commits, and deletes what is not to be kept.

Threads run no collectives. Their progress travels as a vote in the all-reduce that every update makes anyway, so all
ranks leave a part in the same step (`advance`); then they tell each other what went wrong. A disk error on any
rank drops the attempt on all of them, and training goes on with the older checkpoints.
"""

import copy
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avff import checkpoint_files, distributed, run_folder
from avff.checkpoint_files import CanonicalState, Listing, Piece
from avff.engine import agreement, checkpoint
from avff.engine.background import Job, problem_of
from avff.engine.fragments import shape_of
from avff.engine.trainable import Trainable
from avff.files import write_durably
from avff.models.weights import save_weights

logger = logging.getLogger(__name__)

BUFFER = "buffer"


class SaveOutcome(NamedTuple):
    """How a save ended; equal on every rank.

    Attributes:
        step: that was saved.
        committed: whether the checkpoint is there.
        problems: why it is not; or what went wrong afterwards, while deleting older ones.
        blocked_seconds: for which training stood still, on the rank where that was longest.
        total_seconds: that the work took, copying, writing and committing, on the slowest rank; an overlapping save
            also waits for the ends of steps.
    """

    step: int
    committed: bool
    problems: list[str]
    blocked_seconds: float
    total_seconds: float


class Saver:
    """Saves a run's trainables, one checkpoint at a time.

    Args:
        trainables: the model first; its weights become the weight files.
        keep: newest checkpoints to keep, besides the best by validation.
        keep_every: also keep each whose step is a multiple of this; 0 for none.
        overlap: False writes within `begin`, while training waits.
    """

    def __init__(self, run_dir: Path, trainables: Sequence[Trainable], *, keep: int, keep_every: int, overlap: bool):
        self.run_dir = run_dir
        self.trainables = trainables
        self.keep = keep
        self.keep_every = keep_every
        self.overlap = overlap
        self._pending: _Attempt | None = None
        self._copies: dict[tuple[str, str, str], Tensor] = {}

    def begin(
        self, step: int, state: dict[str, Any], sidecar: dict[str, Any], make_durable: Callable[[], None]
    ) -> list[SaveOutcome]:
        """Starts to save `checkpoints/step-N`; a collective.

        Args:
            state: for `state.json`; `validation` in it decides which checkpoint is the best.
            sidecar: of the weight files.
            make_durable: called at once; brings the logs that belong to this step to the disk. An OSError in it
                drops the save.

        Returns:
            what ended meanwhile: a save that was still pending, and this one unless it overlaps training.
        """
        outcomes = []
        if self._pending:
            logger.warning(
                "step %d: the save of step %d is not done yet and is waited for; saving takes longer than the steps "
                "between two saves: raise engine.checkpoint_every_steps",
                step,
                self._pending.step,
            )
            outcomes.append(self.finish())
        final = run_folder.checkpoint_dir(self.run_dir, step)
        self._pending = _Attempt(step, final.with_name(final.name + run_folder.UNFINISHED), state, sidecar)
        with self._pending.blocking():
            problem = problem_of(make_durable)
            parts = [self._snapshot(trainable) for trainable in self.trainables]
            self._pending.buffers = self._buffers(self.trainables[0])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._pending.job = Job(partial(_write, self._pending.unfinished, parts, problem))
        self._pending.work_seconds = self._pending.blocked_seconds
        if not self.overlap:
            outcomes.append(self.finish())
        return [outcome for outcome in outcomes if outcome]

    def votes(self) -> tuple[float, ...]:
        """Returns this rank's progress, to be summed over ranks and handed to `advance`."""
        return (1.0 if self._pending and self._pending.job.is_done else 0.0,)

    def advance(self, totals: Sequence[float]) -> SaveOutcome | None:
        """Takes a pending save on once every rank is done with the present part; a collective where that is so.

        Args:
            totals: sums of all ranks' `votes`, made since the last call of any other method.
        """
        if self._pending is None or totals[0] < distributed.world_size():
            return None
        return self._next_part(self._pending)

    def finish(self) -> SaveOutcome | None:
        """Waits until a pending save is committed or dropped; a collective."""
        outcome = None
        while self._pending:
            outcome = self._next_part(self._pending)
        return outcome

    def _next_part(self, attempt: "_Attempt") -> SaveOutcome | None:
        with attempt.blocking():
            end = self._conclude(attempt) if attempt.is_written else self._agree(attempt)
        if end is None:
            return None
        self._pending = None
        return attempt.outcome(end)

    def _agree(self, attempt: "_Attempt") -> "_End | None":
        """Ends the writing of fragments: starts the commit if all ranks succeeded."""
        gathered = distributed.gather_objects(attempt.wait())
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(gathered) if problem]
        if problems:
            return _drop(attempt, problems)
        listing = {name: entry for part, _ in gathered for name, entry in part.items()}
        attempt.is_written = True
        if distributed.is_main():
            attempt.job = Job(lambda: self._commit(attempt, listing))
        return None

    def _conclude(self, attempt: "_Attempt") -> "_End":
        """Ends the commit."""
        outcome: Any = distributed.broadcast_object(attempt.wait() if distributed.is_main() else None)
        warnings, problem = outcome
        if problem:
            return _drop(attempt, [f"rank 0: {problem}"])
        for warning in warnings:
            logger.warning("step %d is saved, but older checkpoints are not pruned: %s", attempt.step, warning)
        return _End(True, warnings)

    def _snapshot(self, trainable: Trainable) -> "_Part | None":
        """Copies what this rank owns of a trainable to CPU memory, which is kept for the next time."""
        if trainable.zero_stage == 0 and not distributed.is_main():
            return None  # replicated: rank 0 writes it
        shapes = {name: tuple(shape_of(parameter)) for name, parameter in trainable.module.named_parameters()}
        pieces = []
        for fragment in trainable.fragments():
            copies = {
                key: self._copy((trainable.name, key, fragment.name), view) for key, view in fragment.tensors.items()
            }
            pieces.append(Piece(fragment.name, fragment.start, shapes[fragment.name], copies))
        return _Part(trainable.name, trainable.num_updates, pieces)

    def _buffers(self, trainable: Trainable) -> dict[str, Tensor]:
        """Copies what is no parameter, frozen weights for one, on the rank that puts the weight files together."""
        if not distributed.is_main():
            return {}
        buffers = trainable.persistent_buffers()
        return {name: self._copy((trainable.name, BUFFER, name), tensor) for name, tensor in buffers.items()}

    def _copy(self, place: tuple[str, str, str], view: Tensor) -> Tensor:
        if place not in self._copies:
            self._copies[place] = torch.empty_like(view, device="cpu", pin_memory=view.is_cuda)
        # All copies from a device run at once; `begin` waits for them.
        return self._copies[place].copy_(view.detach(), non_blocking=True)

    def _commit(self, attempt: "_Attempt", listing: Listing) -> list[str]:
        """Rank 0: adds the weight files and the state, commits, deletes what is not kept; returns warnings."""
        unfinished, model = attempt.unfinished, self.trainables[0]
        names = {checkpoint_files.WEIGHTS: run_folder.WEIGHTS, checkpoint_files.EMA: run_folder.EMA}
        if model.optimizer.ema_decay == 0:
            del names[checkpoint_files.EMA]
        state = CanonicalState(unfinished / model.name)
        paths = [unfinished / run_folder.STATE]
        for key, name in names.items():
            about = {**attempt.sidecar, "averaged": key == checkpoint_files.EMA}
            save_weights(unfinished / name, {**state.read_all(key), **attempt.buffers}, about)
            paths += [unfinished / name, (unfinished / name).with_suffix(".json")]
        write_durably(unfinished / run_folder.STATE, attempt.state)
        listing |= checkpoint_files.list_files(unfinished, paths)
        checkpoint_files.commit(unfinished, run_folder.checkpoint_dir(self.run_dir, attempt.step), listing)
        problem = problem_of(lambda: checkpoint.prune(self.run_dir, keep=self.keep, keep_every=self.keep_every))
        return [str(problem)] if problem else []


class _Part(NamedTuple):
    """What one rank writes of one trainable."""

    name: str
    num_updates: int
    pieces: list[Piece]


class _End(NamedTuple):
    """Whether a save succeeded, equal on every rank; see SaveOutcome."""

    committed: bool
    problems: list[str]


class _Attempt:
    """A save under way."""

    job: Job
    buffers: dict[str, Tensor]

    def __init__(self, step: int, unfinished: Path, state: dict[str, Any], sidecar: dict[str, Any]):
        self.step = step
        self.unfinished = unfinished
        # Both as they are now: the loop changes its own while the threads write.
        self.state = (json.dumps(state, indent=1) + "\n").encode()
        self.sidecar = copy.deepcopy(sidecar)
        self.is_written = False
        self.blocked_seconds = 0.0
        self.work_seconds = 0.0

    def wait(self) -> tuple[Any, str | None]:
        """Returns the outcome of the present job."""
        outcome = self.job.wait()
        self.work_seconds += self.job.seconds
        return outcome

    @contextmanager
    def blocking(self) -> Iterator[None]:
        """Counts the block's time as one in which training stood still."""
        start = time.monotonic()
        yield
        self.blocked_seconds += time.monotonic() - start

    def outcome(self, end: _End) -> SaveOutcome:
        """A collective."""
        seconds = distributed.gather_objects((self.blocked_seconds, self.work_seconds))
        blocked, total = (max(values) for values in zip(*seconds, strict=True))
        return SaveOutcome(self.step, end.committed, end.problems, blocked, total)


def _write(unfinished: Path, parts: Sequence[_Part | None], unflushed: Exception | None) -> Listing:
    """Writes this rank's fragments; returns their entries in `files.json`."""
    if unflushed:
        raise unflushed
    paths = []
    for part in parts:
        if part:
            path = unfinished / part.name / f"rank-{distributed.rank():05d}.safetensors"
            checkpoint_files.write_pieces(path, part.pieces, part.num_updates)
            paths.append(path)
    return checkpoint_files.list_files(unfinished, paths)


def _drop(attempt: _Attempt, problems: list[str]) -> _End:
    """Removes what was written of a save that failed; a collective."""

    def remove() -> None:
        if distributed.is_main() and attempt.unfinished.exists():
            shutil.rmtree(attempt.unfinished)

    problems = [*problems, *agreement.problems_of(remove)]
    logger.error(
        "checkpoint step-%d could not be written and was dropped, training goes on with the older ones: %s",
        attempt.step,
        "; ".join(problems),
    )
    return _End(False, problems)
