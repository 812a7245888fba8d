"""One optimizer update: forward and backward per micro batch, agreement of all ranks, step."""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avff import distributed, seeding
from avff.batch import AVBatch, ModelInputs
from avff.config import Config
from avff.engine.deepspeed_config import critics_zero_stage
from avff.engine.prefetch import DevicePrefetcher
from avff.engine.schedule import learning_rate_factor
from avff.engine.trainable import Trainable
from avff.models.compiling import compile_blocks
from avff.objectives import Objective
from avff.objectives.cached_contrast import CachedContrast
from avff.preprocess import Preprocess


class UpdateReport(NamedTuple):
    """What one update did; equal on every rank.

    Attributes:
        applied: false when a loss or gradient was not finite anywhere: every rank and both engines skipped.
        terms: losses, mean over micro batches and ranks.
        gradient_norms: before clipping, per trainable.
        votes: sum over ranks of what each passed.
    """

    applied: bool
    terms: dict[str, float]
    gradient_norms: dict[str, float]
    votes: list[float]


class BadBatch(NamedTuple):
    """A micro batch whose loss was not finite on this rank."""

    rank: int
    keys: tuple[str, ...]
    terms: dict[str, float]


class Updater:
    """Carries out updates of a model and, if there are any, its critics.

    Args:
        mark: told what begins, for the watchdog: a phase and the updates done.

    Attributes:
        bad_batches: this rank's micro batches with a non-finite loss in the last update.
    """

    def __init__(
        self,
        config: Config,
        objective: Any,
        model: Trainable,
        critics: Trainable | None,
        preprocess: Preprocess,
        device: torch.device,
        mark: Callable[[str, int], None] = lambda phase, step: None,
    ):
        self.config = config
        self.objective = objective
        self.model = model
        self.critics = critics
        self.preprocess = preprocess
        self.device = device
        self.prefetcher = DevicePrefetcher(device)
        self.mark = mark
        self.bad_batches: list[BadBatch] = []

    @property
    def trainables(self) -> list[Trainable]:
        return [self.model] if self.critics is None else [self.model, self.critics]

    def update(
        self,
        step: int,
        micro_batches: Sequence[AVBatch],
        votes: Sequence[float] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> UpdateReport:
        """Makes update `step`, or skips it on all ranks; a collective.

        Args:
            micro_batches: this rank's share of the global batch.
            votes: numbers of this rank that are summed over ranks within the one all-reduce of the step.
            meanwhile: called once the device has been given all its work, before the wait for it.
        """
        # Nothing should draw from torch's own generator; what does all the same repeats after a resume.
        torch.manual_seed(seeding.derive_seed(self.config.seed, "step", step, distributed.rank()))
        cached = self._cache_contrast(step, micro_batches)
        per_micro_batch = []
        for index in range(len(micro_batches)):
            self.mark("computing", step)
            per_micro_batch.append(self._forward_backward(micro_batches, cached[index], index))
        meanwhile()
        self.mark("agreeing", step)
        report = self._agree(per_micro_batch, votes)
        if not report.applied:
            self.bad_batches = _find_bad(micro_batches, per_micro_batch)
        self.mark("applying", step)
        factor = learning_rate_factor(step, self.config.optim)
        for trainable in self.trainables:
            trainable.step(learning_rate_factor=factor, skip=not report.applied)
        return report

    def _cache_contrast(self, step: int, micro_batches: Sequence[AVBatch]) -> Sequence[CachedContrast | None]:
        """Runs a first pass over the whole update where one forward pass is too small for a contrastive group."""
        count = self.config.passes_per_group(distributed.world_size())
        if count == 1:
            return [None] * len(micro_batches)
        # Inputs are made anew in the second pass: a whole group of them could be too much memory.
        cached: list[CachedContrast] = []
        for start in range(0, len(micro_batches), count):
            self.mark("computing", step)
            group = (self._inputs(micro_batches, index) for index in range(start, start + count))
            cached += self.objective.cache_group(self.model, group)
        return cached

    def _inputs(self, micro_batches: Sequence[AVBatch], index: int) -> ModelInputs:
        return self.preprocess(self.prefetcher.take(micro_batches, index), training=True)

    def _forward_backward(
        self, micro_batches: Sequence[AVBatch], cached: CachedContrast | None, index: int
    ) -> dict[str, Tensor]:
        if index:
            for trainable in self.trainables:
                trainable.step()  # ends the micro batch before this one
        losses = self.objective.model_losses(self.model, self.critics, self._inputs(micro_batches, index), cached)
        self.model.backward(losses.total)
        terms = dict(losses.terms)
        if self.critics is not None:
            critic_losses = self.objective.critic_losses(self.critics, losses.critic_inputs)
            self.critics.backward(critic_losses.total)
            terms |= critic_losses.terms
        return terms

    def _agree(self, per_micro_batch: list[dict[str, Tensor]], votes: Sequence[float]) -> UpdateReport:
        """Sums votes, gradient norms and losses over ranks: one collective and one wait for the device per step.

        Nothing before it waits (tests/engine/test_waiting.py). Skipping an update has to be decided on the host, and
        DeepSpeed's step, which follows, reads gradient norms there as well, once per parameter group.
        """
        names = list(per_micro_batch[0])
        means = [torch.stack([terms[name].double() for terms in per_micro_batch]).mean() for name in names]
        squares = [trainable.gradient_square_sum() for trainable in self.trainables]
        # Last, for copying numbers to a GPU begins the wait: what has been queued till here is computed meanwhile.
        own_votes = torch.tensor(votes, dtype=torch.float64, device=self.device)
        total = distributed.all_reduce_sum(torch.cat([own_votes, torch.stack(squares + means)])).tolist()
        sums, square_sums, term_sums = (total[part] for part in _consecutive(len(votes), len(squares), len(means)))
        norms = [math.sqrt(square) if square >= 0 else math.nan for square in square_sums]
        values = [value / distributed.world_size() for value in term_sums]
        return UpdateReport(
            applied=all(map(math.isfinite, norms + values)),
            terms=dict(zip(names, values, strict=True)),
            gradient_norms={t.name: norm for t, norm in zip(self.trainables, norms, strict=True)},
            votes=sums,
        )


def build_updater(
    config: Config,
    objective: Objective,
    device: torch.device,
    *,
    new_names: Collection[str] = (),
    mark: Callable[[str, int], None] = lambda phase, step: None,
) -> Updater:
    """Puts an objective's networks under DeepSpeed, compiled if the config says so; a collective.

    Args:
        new_names: parameters of the model that no weight file filled.
    """
    if config.engine.compile:
        compile_blocks(objective.model)
    model = Trainable(
        "model",
        objective.model,
        config,
        zero_stage=config.engine.zero_stage,
        learning_rate=config.optim.learning_rate,
        new_names=new_names,
    )
    critics = None
    if objective.critics is not None:
        critics = Trainable(
            "critics",
            objective.critics,
            config,
            zero_stage=critics_zero_stage(config),
            learning_rate=config.optim.critic_learning_rate,
        )
    preprocess = Preprocess(config.clip, config.data.augment)
    return Updater(config, objective, model, critics, preprocess, device, mark=mark)


def _consecutive(*lengths: int) -> list[slice]:
    stops = list(itertools.accumulate(lengths))
    return [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def _find_bad(micro_batches: Sequence[AVBatch], per_micro_batch: list[dict[str, Tensor]]) -> list[BadBatch]:
    found = []
    for batch, terms in zip(micro_batches, per_micro_batch, strict=True):
        values = {name: float(value) for name, value in terms.items()}
        if not all(map(math.isfinite, values.values())):
            found.append(BadBatch(distributed.rank(), batch.keys, values))
    return found
