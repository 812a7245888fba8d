"""What `bench step` measures: our update and the eager one, on clips that stay on the device."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avff import distributed
from avff.batch import AVBatch, ModelInputs
from avff.bench.eager_model import EagerStep
from avff.config import Config
from avff.data.quarantine import Quarantine
from avff.engine.prefetch import LookAhead
from avff.engine.run_data import RunData
from avff.engine.update import Updater, build_updater
from avff.objectives import build_objective
from avff.preprocess import Preprocess
from avff.seeding import derive_seed

PARTS = ("preprocess_seconds", "network_seconds", "optimizer_seconds")
LOADER_WARM_UP_STEPS = 2


class Measurement(NamedTuple):
    """What one setting took.

    Attributes:
        columns: what tells it from other settings of the same network and batch.
        step_seconds: of one update, one value per round; none where memory ran out, and then nothing else is known.
        parts: seconds by `PARTS`; None where they were not told apart.
        loss, gradient_norm: of the first update, before clipping.
        first_step_seconds: with what is compiled, loaded or tuned on first use.
        peak_gib: most memory of an update on a GPU: weights, optimizer state, activations.
        loader_step_seconds: of one update whose clips are read from shards.
    """

    columns: dict[str, Any]
    step_seconds: list[float]
    parts: dict[str, float | None]
    loss: float | None = None
    gradient_norm: float | None = None
    first_step_seconds: float | None = None
    peak_gib: float | None = None
    loader_step_seconds: float | None = None


def cached_batch(config: Config, device: torch.device) -> AVBatch:
    """Clips of noise, of this rank, where an update reads them."""
    clip, count = config.clip, config.engine.micro_batch_size
    rng = torch.Generator().manual_seed(derive_seed(config.seed, "bench", distributed.rank()))
    side = clip.load_size
    video = torch.randint(0, 256, (count, clip.num_frames, side, side, 3), dtype=torch.uint8, generator=rng)
    sound = 0.1 * torch.randn(count, clip.num_samples, generator=rng)
    seeds = torch.randint(0, 2**62, (count,), generator=rng)
    labels = torch.arange(count) % 2
    tensors: list[Tensor] = [torch.zeros(count, dtype=torch.float64), seeds, video, sound, labels, labels, labels]
    return AVBatch(tuple(f"clip{i}" for i in range(count)), (-1,) * count, *(tensor.to(device) for tensor in tensors))


class Clock:
    """Seconds between named moments, with the device's queue run empty at each."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._since = 0.0

    def switch(self, name: str) -> str:
        """Ends what was going on and begins `name` (nothing, if empty); returns what ended."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, ended = time.perf_counter(), self._name
        if ended:
            self.seconds[ended] = self.seconds.get(ended, 0.0) + now - self._since
        self._name, self._since = name, now
        return ended


class _TimedPreprocess(Preprocess):
    """Preprocessing that tells a clock when it runs, while there is one."""

    clock: Clock | None = None

    def __call__(self, batch: AVBatch, *, training: bool) -> ModelInputs:
        if self.clock is None:
            return super().__call__(batch, training=training)
        before = self.clock.switch("preprocess_seconds")
        inputs = super().__call__(batch, training=training)
        self.clock.switch(before)
        return inputs


class Subject(ABC):
    """Something whose updates are timed, and which holds memory from `warm_up` to `release`; subclasses say what an update is."""

    columns: dict[str, Any]

    def __init__(self, config: Config, device: torch.device):
        self.config = config
        self.device = device
        self.release()

    @abstractmethod
    def _make(self) -> Callable[[int], tuple[float, float]]:
        """Returns what makes an update, given its number, and returns its loss and gradient norm."""

    def release(self) -> None:
        """Forgets network and figures."""
        self._memory = PeakMemory(self.device)
        self._update: Callable[[int], tuple[float, float]] | None = None
        self._step = 0
        self._step_seconds: list[float] = []
        self._parts: dict[str, float | None] = dict.fromkeys(PARTS)
        self._loader_step_seconds: float | None = None

    def update(self) -> tuple[float, float]:
        assert self._update, "warm_up comes first"
        found = self._update(self._step)
        self._step += 1
        return found

    def _timed(self, num_steps: int) -> float:
        clock = Clock(self.device)
        clock.switch("all")
        for _ in range(num_steps):
            self.update()
        clock.switch("")
        return clock.seconds["all"] / num_steps

    def warm_up(self) -> None:
        """Makes network and first update, where that was not yet done."""
        if self._update is not None:
            return
        clock = Clock(self.device)
        with self._memory.of_state():
            self._update = self._make()
            clock.switch("first")
            self.loss, self.gradient_norm = self.update()
            clock.switch("")
        self.first_step_seconds = clock.seconds["first"]

    def time_round(self, num_steps: int) -> None:
        with self._memory.of_updates():
            self._step_seconds.append(self._timed(num_steps))

    @abstractmethod
    def time_parts(self, num_steps: int) -> None:
        """Measures the parts of an update, where it can tell them apart."""

    def measurement(self) -> Measurement:
        """Returns what was measured since the last call."""
        step_seconds, self._step_seconds = self._step_seconds, []
        return Measurement(
            columns=self.columns,
            step_seconds=step_seconds,
            parts=self._parts,
            loss=self.loss,
            gradient_norm=self.gradient_norm,
            first_step_seconds=self.first_step_seconds,
            peak_gib=self._memory.peak_gib,
            loader_step_seconds=self._loader_step_seconds,
        )

    def out_of_memory(self) -> Measurement:
        """Returns what is known of a setting that does not fit."""
        return Measurement(self.columns, [], dict.fromkeys(PARTS))


class OurSubject(Subject):
    """The engine's own update."""

    def __init__(self, config: Config, device: torch.device):
        engine, again = config.engine, config.model.activation_checkpointing
        self.columns = {
            "step": "avff",
            "precision": engine.precision,
            "zero": engine.zero_stage,
            "compile": "on" if engine.compile else "off",
            "checkpointing": again,
        }
        super().__init__(config, device)

    def release(self) -> None:
        super().release()
        self._clock: Clock | None = None
        self._updater: Updater | None = None
        self._preprocess: _TimedPreprocess | None = None

    def _make(self) -> Callable[[int], tuple[float, float]]:
        config = self.config
        updater = build_updater(config, build_objective(config), self.device, mark=self._mark)
        self._preprocess = updater.preprocess = _TimedPreprocess(config.clip, config.data.augment)
        self._updater = updater
        batch = cached_batch(config, self.device)

        def update(step: int) -> tuple[float, float]:
            report = updater.update(step, [batch])
            return report.terms["loss"], report.gradient_norms["model"]

        return update

    def _mark(self, phase: str, step: int) -> None:
        if self._clock is not None:
            self._clock.switch("network_seconds" if phase == "computing" else "optimizer_seconds")

    def time_parts(self, num_steps: int) -> None:
        assert self._preprocess
        self._clock = self._preprocess.clock = Clock(self.device)
        for _ in range(num_steps):
            self.update()
        self._clock.switch("")
        self._parts = {name: self._clock.seconds[name] / num_steps for name in PARTS}
        self._clock = self._preprocess.clock = None

    def time_loader(self, config: Config, num_steps: int) -> None:
        """Measures updates that read shards: seconds per step once what the workers read ahead at the start is used up.

        Args:
            config: whose data section is read.
            num_steps: at least; as many as the workers read ahead where that is more, for these may come all at once.
        """
        assert self._updater
        updater, data, clock = self._updater, RunData(config), Clock(self.device)
        ahead = max(LOADER_WARM_UP_STEPS, config.data.num_workers * config.data.prefetch_steps)
        num_steps = max(num_steps, ahead)
        nothing = Quarantine((), samples_per_step=data.plan.samples_per_step)
        with closing(data.train_steps(range(ahead + num_steps), nothing)) as batches:
            steps = LookAhead(batches, updater.prefetcher)
            for index, batch in enumerate(steps):
                updater.update(self._step + index, batch.micro_batches, meanwhile=steps.look_ahead)
                if index + 1 == ahead:
                    clock.switch("all")
        clock.switch("")
        self._loader_step_seconds = clock.seconds["all"] / num_steps


class EagerSubject(Subject):
    """The unfused fp32 implementation (avff.bench.eager_model)."""

    columns = {"step": "eager", "precision": "fp32", "zero": None, "compile": "off", "checkpointing": "none"}  # noqa: RUF012

    def _make(self) -> Callable[[int], tuple[float, float]]:
        step, batch = EagerStep(self.config, self.device), cached_batch(self.config, self.device)
        return lambda number: step.update(number, batch)

    def time_parts(self, num_steps: int) -> None:
        """Leaves them unknown."""


class PeakMemory:
    """Most memory of a GPU that one subject has held, though others live in the same process: its state and what a step adds.

    Without a GPU nothing is known: memory of a process that is freed is not given back at once.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._state = self._added = 0

    @property
    def peak_gib(self) -> float | None:
        return (self._state + self._added) / 2**30 if self.device.type == "cuda" else None

    @contextmanager
    def of_state(self) -> Iterator[None]:
        """Around all that makes what is held between updates: the first of them too, in which optimizers make theirs."""
        before = self._now()
        yield
        self._state = self._now() - before

    @contextmanager
    def of_updates(self) -> Iterator[None]:
        before = self._now()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        if self.device.type == "cuda":
            self._added = max(self._added, torch.cuda.max_memory_allocated(self.device) - before)

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory of a GPU or of this machine was refused; compilers and libraries put that into errors of their own."""
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "ALLOC_FAILED"))
