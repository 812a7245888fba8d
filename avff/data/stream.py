"""Batches for one rank, in plan order, from a torch DataLoader (DESIGN §4).

One item of the loader is one step of this rank. Worker w of n serves steps start + w, start + w + n, ..., and the
loader asks its workers in turn, so steps come in order whatever n is.
"""

import itertools
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from avff.data.plan import Entry, Plan
from avff.data.quarantine import Quarantine
from avff.data.selection import StoredSample
from avff.data.shards import read_sample
from avff.data.views import View
from avff.errors import ConfigError, ReadError, ShardError


class Substitution(NamedTuple):
    """One planned sample that could not be used, and the one that took its place.

    Attributes:
        shard: path of the tar.
        reason: the error, as a sentence.
        position: of the clip on the plan's line.
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
        substitutions: of this rank's clips in this step.
    """

    step: int
    micro_batches: list[Any]
    substitutions: list[Substitution]


def rank_places(global_batch_size: int, group_size: int, rank: int, world_size: int) -> np.ndarray:
    """Returns this rank's places in the global batch: an equal run of every group, groups in order.

    Raises:
        ConfigError: groups do not tile the batch, or ranks do not share a group evenly.
    """
    if global_batch_size % group_size or group_size % world_size:
        raise ConfigError(
            f"{world_size} ranks cannot share groups of {group_size} in a global batch of {global_batch_size}: the group "
            "has to divide the batch and the ranks the group; change engine.global_batch_size or the number of ranks"
        )
    places = np.arange(global_batch_size).reshape(-1, world_size, group_size // world_size)
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
    places = rank_places(plan.global_batch_size, group_size, rank, world_size)
    if len(places) % micro_batch_size:
        raise ConfigError(
            f"engine.micro_batch_size {micro_batch_size} does not divide the {len(places)} clips that each of {world_size} "
            f"ranks reads per step; choose a divisor"
        )
    dataset = _TrainSteps(plan, view, places, micro_batch_size, steps, quarantine)
    return _loader(dataset, num_workers, prefetch_steps, pin_memory)


def evaluation_loader(
    samples: Sequence[StoredSample],
    view: View,
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    num_workers: int,
    timeout_seconds: float,
    prefetch_steps: int = 2,
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
    dataset = _EvaluationBatches(samples[rank::world_size], view, micro_batch_size)
    return _loader(dataset, num_workers, prefetch_steps, pin_memory)


class _TrainSteps(IterableDataset):
    def __init__(
        self,
        plan: Plan,
        view: View,
        places: np.ndarray,
        micro_batch_size: int,
        steps: Sequence[int],
        quarantine: Quarantine,
    ):
        self.plan = plan
        self.view = view
        self.places = places
        self.micro_batch_size = micro_batch_size
        self.steps = steps
        self.quarantine = quarantine

    def __iter__(self) -> Iterator[StepBatch]:
        for step in _share_of_worker(self.steps):
            yield self._read(step)

    def _read(self, step: int) -> StepBatch:
        clips: list[Any] = []
        substitutions: list[Substitution] = []
        for entry in self.plan.at(step * self.plan.global_batch_size + self.places):
            clip, failures = self._clip(entry, step)
            clips.append(clip)
            substitutions += failures
        size = self.micro_batch_size
        micro_batches = [self.view.collate(clips[i : i + size]) for i in range(0, len(clips), size)]
        return StepBatch(step, micro_batches, substitutions)

    def _clip(self, entry: Entry, step: int) -> tuple[Any, list[Substitution]]:
        """Returns the entry's clip, or its first substitute's that can be read, and what went wrong before."""
        failures: list[_Failure] = []
        for candidate in itertools.chain([entry], self.plan.substitutes(entry)):
            sample = candidate.sample
            known = self.quarantine.reason(sample.row, entry.position)
            if known is not None:
                failures.append(_Failure(sample, known, lasting=False))
                continue
            try:
                clip = self.view.train_clip(read_sample(*sample), self.plan.clip_seed(candidate))
            except ShardError as error:
                failures.append(_Failure(sample, str(error), lasting=isinstance(error, ReadError)))
                continue
            return clip, [_substitution(failure, sample, step, entry.position) for failure in failures]
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


class _EvaluationBatches(IterableDataset):
    def __init__(self, samples: Sequence[StoredSample], view: View, micro_batch_size: int):
        self.samples = samples
        self.view = view
        self.micro_batch_size = micro_batch_size

    def __iter__(self) -> Iterator[Any]:
        waiting: list[Any] = []
        for sample in _share_of_worker(self.samples):
            waiting += self._clips(sample)
            while len(waiting) >= self.micro_batch_size:
                yield self.view.collate(waiting[: self.micro_batch_size])
                waiting = waiting[self.micro_batch_size :]
        if waiting:
            yield self.view.collate(waiting)

    def _clips(self, sample: StoredSample) -> list[Any]:
        stored = read_sample(*sample)
        try:
            return self.view.evaluation_clips(stored)
        except ShardError as error:
            raise ShardError(f"{sample.directory.path / sample.row.shard}: {error}") from error


def _share_of_worker(items: Sequence[Any]) -> Sequence[Any]:
    worker = get_worker_info()
    return items if worker is None else items[worker.id :: worker.num_workers]


def _loader(
    dataset: IterableDataset, num_workers: int, prefetch_steps: int, pin_memory: bool
) -> Generator[Any, None, None]:
    yield from DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch_steps if num_workers else None,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        # Its own generator, since the loader draws a number that would move the global state.
        generator=torch.Generator(),
    )


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker_id: int) -> None:
    """Signals go to the whole process group; the training process decides what they mean and ends its workers."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    _heed_term_of(os.getppid())


def _heed_term_of(parent: int) -> None:
    """Ends this process at TERM from its parent and from nobody else: torchrun and SLURM send it to workers too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
