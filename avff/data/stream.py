"""Batches for one rank, in plan order, read ahead by `avff.data.workers`.

What comes is a pure function of the plan and the quarantine list. A sample whose bytes are bad is replaced by the plan's
substitute, the same one wherever it is read. One that could not be read in these circumstances (a time-out, a crashed
decoder, an I/O error) is replaced too, and the substitution is marked `lasting`: the run writes it on the list.
"""

import contextlib
import itertools
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from avff.data.plan import Entry, Plan
from avff.data.quarantine import Quarantine
from avff.data.selection import StoredSample
from avff.data.shards import read_sample
from avff.data.views import View
from avff.data.worker_process import Place, Slot
from avff.data.workers import read_in_order
from avff.errors import ConfigError, ReadError, ShardError


class Substitution(NamedTuple):
    """One planned sample that could not be used, and the one that took its place, in all its repeats.

    Attributes:
        shard: path of the tar.
        reason: the error, as a sentence.
        position: of the sample on the plan's line.
        lasting: circumstances were to blame, not the bytes, and the quarantine list does not hold it yet: the same
            clips come again only when it is put there.
    """

    key: str
    shard: str
    reason: str
    substitute_key: str
    step: int
    position: int
    lasting: bool = False


class StepBatch(NamedTuple):
    """What one rank reads in one step.

    Attributes:
        step: the global step.
        micro_batches: AVBatch each (or what the view collates), in order.
        substitutions: of this rank's samples in this step.
    """

    step: int
    micro_batches: list[Any]
    substitutions: list[Substitution]


def rank_places(samples_per_step: int, group_size: int, rank: int, world_size: int) -> np.ndarray:
    """Returns this rank's places among the samples of a step: an equal run of every group, groups in order.

    Groups of one repeat are those of every other, so a rank has all clips of its samples.

    Raises:
        ConfigError: groups do not tile the step, or ranks do not share a group evenly.
    """
    if samples_per_step % group_size or group_size % world_size:
        fitting = ", ".join(str(ranks) for ranks in range(1, group_size + 1) if group_size % ranks == 0)
        raise ConfigError(
            f"{world_size} ranks cannot share groups of {group_size} in a step of {samples_per_step} samples: the group "
            f"has to divide the step and the ranks the group; use {fitting} ranks and an engine.global_batch_size / "
            f"data.windows_per_sample that is a multiple of {group_size}"
        )
    places = np.arange(samples_per_step).reshape(-1, world_size, group_size // world_size)
    return places[:, rank].reshape(-1)


def train_loader(
    plan: Plan,
    view: View,
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    group_size: int,
    num_workers: int,
    prefetch_steps: int,
    steps: Sequence[int],
    timeout_seconds: float,
    quarantine: Quarantine,
    pin_memory: bool = False,
) -> Generator[StepBatch, None, None]:
    """Reads steps of a plan for one rank.

    Args:
        micro_batch_size: clips per forward pass of this rank; divides its share of the batch.
        group_size: `Config.group_size`.
        num_workers: processes; 0 decodes in this one. No effect on what comes.
        prefetch_steps: steps that each worker prepares ahead.
        steps: of the plan, in the order in which they are to come.
        timeout_seconds: longest that one sample may take to be read and decoded.
        quarantine: samples that are not read.
        pin_memory: page-locked tensors, for copies to a GPU.

    Returns:
        An iterator over StepBatch; its `close()` ends the workers. A sample that cannot be read is replaced by the
        plan's substitute; iterating raises ShardError when every substitute fails too.

    Raises:
        ConfigError: batch, groups, ranks and micro batches do not fit together.
    """
    places = rank_places(plan.samples_per_step, group_size, rank, world_size)
    num_clips = len(places) * plan.num_repeats
    if num_clips % micro_batch_size:
        raise ConfigError(
            f"engine.micro_batch_size {micro_batch_size} does not divide the {num_clips} clips that each of {world_size} "
            f"ranks reads per step; choose a divisor"
        )
    job = _TrainSteps(plan, view, places, micro_batch_size, quarantine)
    batches = read_in_order(
        job, steps, num_workers=num_workers, prefetch=prefetch_steps, timeout_seconds=timeout_seconds
    )
    return _handed_out(batches, pin_memory)


def evaluation_loader(
    samples: Sequence[StoredSample],
    view: View,
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    num_workers: int,
    timeout_seconds: float,
    prefetch_samples: int = 4,
    pin_memory: bool = False,
) -> Generator[Any, None, None]:
    """Reads every window of every track of every sample once, over all ranks together.

    Rank r takes samples r, r + R, ...; batches hold up to `micro_batch_size` clips, and a sample's clips are
    neighbours. Ranks may have different numbers of batches. Samples without face or sound have no clips.

    Args:
        samples: as `avff.data.selection.evaluation_samples` returns them.

    Returns:
        An iterator over batches (AVBatch for AVView); its `close()` ends the workers. Iterating raises ShardError for a sample that cannot be read:
        nothing is substituted or left out.
    """
    share = samples[rank::world_size]
    clips = read_in_order(
        _EvaluationSamples(share, view),
        range(len(share)),
        num_workers=num_workers,
        prefetch=prefetch_samples,
        timeout_seconds=timeout_seconds,
    )
    return _handed_out(_batches(clips, view, micro_batch_size), pin_memory)


class _TrainSteps:
    """The job of training: one item is one step of this rank."""

    def __init__(self, plan: Plan, view: View, places: np.ndarray, micro_batch_size: int, quarantine: Quarantine):
        self.plan = plan
        self.view = view
        self.places = places
        self.micro_batch_size = micro_batch_size
        self.quarantine = quarantine

    def __call__(self, step: int, slot: Slot) -> StepBatch:
        clips_by_sample: list[list[Any]] = []
        substitutions: list[Substitution] = []
        for entry in self.plan.at(step * self.plan.samples_per_step + self.places):
            found, failures = self._clips(entry, step, slot)
            clips_by_sample.append(found)
            substitutions += failures
        clips = [clip for repeat in zip(*clips_by_sample, strict=True) for clip in repeat]
        size = self.micro_batch_size
        micro_batches = [self.view.collate(clips[i : i + size]) for i in range(0, len(clips), size)]
        return StepBatch(step, micro_batches, substitutions)

    def _clips(self, entry: Entry, step: int, slot: Slot) -> tuple[list[Any], list[Substitution]]:
        """Returns the entry's clips, or those of its first substitute that can be read, and what went wrong before."""
        failures: list[_Failure] = []
        for attempt, candidate in enumerate(itertools.chain([entry], self.plan.substitutes(entry))):
            sample = candidate.sample
            known = self.quarantine.reason(sample.row, entry.position)
            if known is not None:
                failures.append(_Failure(sample, known, lasting=False))
                continue
            try:
                with slot.reading(place_of(entry.position, sample, attempt)):
                    clips = self.view.train_clips(read_sample(*sample), self.plan.clip_seeds(candidate))
            except ShardError as error:
                failures.append(_Failure(sample, str(error), lasting=isinstance(error, ReadError)))
                continue
            return clips, [_substitution(failure, sample, step, entry.position) for failure in failures]
        raise ShardError(
            f"step {step}: sample {entry.sample.row.key!r} and all {len(failures) - 1} substitutes of its split and labels "
            f"cannot be read; the last reason: {failures[-1].reason}"
        )


class _Failure(NamedTuple):
    sample: StoredSample
    reason: str
    lasting: bool


def _substitution(failure: _Failure, substitute: StoredSample, step: int, position: int) -> Substitution:
    directory, row = failure.sample
    shard = str(directory.path / row.shard)
    return Substitution(row.key, shard, failure.reason, substitute.row.key, step, position, failure.lasting)


def first_windows(samples: Sequence[StoredSample], view: View, *, num_workers: int, timeout_seconds: float) -> Any:
    """Returns one batch with the first window of every sample; raises ShardError for one that cannot be read."""
    job, numbers = _EvaluationSamples(samples, view), range(len(samples))
    windows = read_in_order(job, numbers, num_workers=num_workers, prefetch=1, timeout_seconds=timeout_seconds)
    return view.collate([clips[0] for clips in windows])


class _EvaluationSamples:
    """The job of evaluation: one item is the number of a sample."""

    def __init__(self, samples: Sequence[StoredSample], view: View):
        self.samples = samples
        self.view = view

    def __call__(self, number: int, slot: Slot) -> list[Any]:
        sample = self.samples[number]
        with slot.reading(place_of(number, sample)):
            stored = read_sample(*sample)
            try:
                return self.view.evaluation_clips(stored)
            except ShardError as error:
                raise ShardError(f"{sample.directory.path / sample.row.shard}: {error}") from error


def place_of(position: int, sample: StoredSample, attempt: int = 0) -> Place:
    """Returns how a sample is called while it is being read."""
    return Place(position, attempt, f"{sample.directory.path / sample.row.shard}: sample {sample.row.key!r}")


def _batches(clips: Generator[list[Any], None, None], view: View, size: int) -> Generator[Any, None, None]:
    """Collates the clips of all samples, so that a batch does not depend on who read them."""
    waiting: list[Any] = []
    with contextlib.closing(clips):
        for found in clips:
            waiting += found
            while len(waiting) >= size:
                yield view.collate(waiting[:size])
                waiting = waiting[size:]
    if waiting:
        yield view.collate(waiting)


def _handed_out(values: Generator[Any, None, None], pin_memory: bool) -> Generator[Any, None, None]:
    with contextlib.closing(values):
        yield from map(_pinned, values) if pin_memory else values


def _pinned(value: Any) -> Any:
    """Returns the value with page-locked tensors; looks into lists and NamedTuples."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, list):
        return [_pinned(part) for part in value]
    return value._make(map(_pinned, value)) if hasattr(value, "_make") else value
