"""The loop of every stage: read, update, log, validate, save."""

import logging
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from avff import distributed, run_folder
from avff.config import Config
from avff.data.stream import StepBatch
from avff.engine import agreement, checkpoint, panels
from avff.engine.decisions import Decisions
from avff.engine.ledger import Ledger
from avff.engine.metrics_log import MetricsLog
from avff.engine.origin import Origin
from avff.engine.prefetch import LookAhead
from avff.engine.rates import Rates
from avff.engine.run_data import RunData
from avff.engine.saver import SaveOutcome, Saver
from avff.engine.signals import StopFlag
from avff.engine.spikes import SpikeDetector
from avff.engine.update import Updater, UpdateReport
from avff.engine.validation import Validation, Validator
from avff.engine.watchdog import Watchdog
from avff.errors import AvffError, TrainingError
from avff.models.flops import training_gflops

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RunFacts(NamedTuple):
    """What every checkpoint of a run says about it: where its weights come from, and its sidecar."""

    origin: Origin
    sidecar: dict[str, Any]


class Votes(NamedTuple):
    """What the ranks told each other with the step's one all-reduce.

    Attributes:
        stop: some rank was told to stop.
        num_substituted: samples replaced in this step, over all ranks.
        saving: sums of `Saver.votes`.
    """

    stop: bool
    num_substituted: int
    saving: list[float]


class Loop:
    """A run between two starts.

    Attributes:
        step: updates done.
        saved_step: of the newest checkpoint.
    """

    def __init__(
        self,
        config: Config,
        updater: Updater,
        data: RunData,
        validator: Validator,
        decisions: Decisions,
        watchdog: Watchdog,
        about: RunFacts,
        state: dict[str, Any],
    ):
        self.config = config
        self.updater = updater
        self.data = data
        self.validator = validator
        self.decisions = decisions
        self.watchdog = watchdog
        self.about = about
        self.step = self.saved_step = state.get("step", 0)
        self.saver = Saver(
            config.run_dir,
            updater.trainables,
            keep=config.engine.keep_checkpoints,
            keep_every=config.engine.keep_every_steps,
            overlap=config.engine.overlap_saving,
        )
        self.ledger = agreement.everywhere(lambda: Ledger(config, state.get("ledger", {}), resume_step=self.step))
        self.log = agreement.everywhere(
            lambda: (
                MetricsLog(config, resume_step=self.step, code_revision=about.sidecar["code_revision"])
                if distributed.is_main()
                else None
            )
        )
        self.rates = Rates(updater.device, training_gflops(config) * 1e9, state.get("first_start_unix", time.time()))
        self._ahead: LookAhead | None = None
        self._last_save: SaveOutcome | None = None
        self._reopens_data = False
        self._warned_of_grace = False
        self._longest_finish_seconds = 0.0
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        """Takes over what a checkpoint holds besides weights and ledger."""
        # Sums and counts since the last log line; part of a checkpoint, so that a resumed line repeats to the bit.
        self._window: dict[str, list[float]] = {name: list(sums) for name, sums in state.get("window", {}).items()}
        self.spikes = SpikeDetector(
            self.config.faults.spike_factor, self.config.faults.spike_window_steps, state.get("recent_losses", [])
        )
        self.rates.productive_seconds = state.get("productive_seconds", 0.0)

    def run(self, stop: StopFlag) -> bool:
        """Trains to the end, or until some rank is told to stop; returns whether the end was reached."""
        with logging_redirect_tqdm():
            self._train(stop)
        self.watchdog.mark("ending", self.step)
        self._finish_save()
        if self.saved_step != self.step:
            raise TrainingError(
                f"{self.config.run_dir}: step {self.step} could not be saved, see the log; step {self.saved_step} is the "
                "newest checkpoint; make room on the disk and start the same command again"
            )
        agreement.everywhere(self._make_logs_durable)
        return self.step == self.config.optim.num_steps

    def stop_seconds(self) -> float:
        """How long a stop may take: the rest of a step, validation and panel, and a save; before the first, a guess."""
        save_seconds = self._last_save.total_seconds if self._last_save else self.config.engine.grace_seconds
        return self.rates.longest_step_seconds + self._longest_finish_seconds + save_seconds

    def _train(self, stop: StopFlag) -> None:
        bar = self._progress_bar()
        waiting_since = time.monotonic()
        with closing(self._batches()) as batches:
            for batch in batches:
                data_wait = time.monotonic() - waiting_since
                started = time.monotonic()
                report, votes = self._update(batch, stop)
                idle = self._ahead.idle_seconds if self._ahead else 0.0
                seconds = time.monotonic() - started
                self.rates.count(self.config.engine.global_batch_size, data_wait + idle, seconds - idle)
                if not self._has_rewound(report, bar):
                    self._finish_step(report, votes, bar)
                if votes.stop:
                    break
                waiting_since = time.monotonic()
        bar.close()

    def _batches(self) -> Generator[StepBatch, None, None]:
        """Yields batches from the present step to the end; opened anew after a decision changed what comes."""
        while self.step < self.config.optim.num_steps:
            self._reopens_data = False
            steps = self.decisions.plan_steps(self.step, self.config.optim.num_steps)
            with closing(self.data.train_steps(steps, self.decisions.quarantine)) as batches:
                self._ahead = LookAhead(batches, self.updater.prefetcher)
                for batch in self._watched("reading data", self._ahead):
                    yield batch
                    if self._reopens_data:
                        break

    def _watched(self, phase: str, items: Iterable[T]) -> Iterator[T]:
        """Passes items on; waiting for one is a phase of its own."""
        self.watchdog.mark(phase, self.step)
        for item in items:
            yield item
            self.watchdog.mark(phase, self.step)

    def _update(self, batch: StepBatch, stop: StopFlag) -> tuple[UpdateReport, Votes]:
        own_votes = [float(stop.is_set), float(len(batch.substitutions)), *self.saver.votes()]
        report = self.updater.update(self.step, batch.micro_batches, own_votes, self._look_ahead)
        votes = Votes(report.votes[0] > 0, round(report.votes[1]), report.votes[2:])
        self.step += 1
        self.watchdog.mark("writing metrics", self.step)
        with self._no_save_is_lost():
            if votes.num_substituted:
                self._replace(batch)
            if report.applied:
                self.ledger.applied()
            else:
                logger.warning("step %d: not finite, skipped on all ranks", self.step)
                self.ledger.skipped(self.step, self.updater.bad_batches, report.gradient_norms)
        self._note_save(self.saver.advance(votes.saving))
        return report, votes

    def _look_ahead(self) -> None:
        if self._ahead:
            self.watchdog.mark("reading data", self.step)
            self._ahead.look_ahead()

    def _replace(self, batch: StepBatch) -> None:
        """Records replaced clips; a collective. What this run gives up for good, all ranks leave out from here on."""
        condemned = self.ledger.substituted(self.step, batch.substitutions)
        if condemned:
            for clip in condemned:
                logger.warning("step %d: %s is put on the quarantine list: %s", self.step, clip.key, clip.reason)
            self.decisions.quarantined(condemned)
            self._reopens_data = True

    def _finish_step(self, report: UpdateReport, votes: Votes, bar: tqdm) -> None:
        started = time.monotonic()
        self._log(report, bar)
        validation = self._validate() if self._is_due(self.config.engine.validate_every_steps) else None
        if self._draws_panel():
            self._draw_panel()
        self._longest_finish_seconds = max(self._longest_finish_seconds, time.monotonic() - started)
        if validation or self._is_due(self.config.engine.checkpoint_every_steps) or votes.stop:
            self._save(validation)

    # --------------------------------------------------------------------------------------- spikes

    def _has_rewound(self, report: UpdateReport, bar: tqdm) -> bool:
        """Heeds a spike of the loss, which is the same on every rank; a collective where it goes back."""
        if not report.applied or not self.spikes.check(report.terms["loss"]):
            return False
        loss, faults = report.terms["loss"], self.config.faults
        logger.warning("step %d: loss %.4g is a spike", self.step, loss)
        self.ledger.spiked(self.step, loss)
        if not faults.rewind_steps:
            self.spikes.add(loss)
            return False
        self._finish_save()
        if len(self.decisions.rewinds) >= faults.max_rewinds:
            raise TrainingError(
                f"step {self.step}: loss {loss:.4g} is a spike, and the run went back {len(self.decisions.rewinds)} times "
                f"already (faults.max_rewinds={faults.max_rewinds}); look at ledger.jsonl and the learning rate"
            )
        steps = agreement.on_main(lambda: run_folder.committed_steps(self.config.run_dir))
        old_enough = (step for step in steps if step <= self.step - faults.rewind_steps and self._is_save_due(step))
        target = max(old_enough, default=None)
        if target is None:
            logger.warning("no checkpoint is %d steps old, so training goes on", faults.rewind_steps)
            self.spikes.add(loss)
            return False
        self._rewind(target, loss)
        bar.update(self.step - bar.n)
        return True

    def _rewind(self, target: int, loss: float) -> None:
        """Goes back to a checkpoint and leaves out the clips read since; a collective."""
        num_updates = self.step - target
        # The decision first: a process that dies in between finds it, and sets the later checkpoints aside itself.
        self.decisions.rewound(from_step=target, spike_step=self.step - 1, loss=loss)
        run_dir = self.config.run_dir
        checkpoint.set_aside(run_dir, newer_than=target, suffix=checkpoint.REWOUND)
        newest = checkpoint.find_newest(run_dir)
        if newest is None:
            raise TrainingError(f"{run_dir}: no checkpoint is whole, so the run cannot go back to step {target}")
        checkpoint.load(newest, self.updater.trainables)
        state = run_folder.read_state(newest)
        self.step = self.saved_step = state["step"]
        agreement.everywhere(lambda: self._rewind_logs(state))
        self._restore(state)
        self._reopens_data = True
        logger.warning("went back to step %d; the clips of %d updates are left out", self.step, num_updates)

    def _rewind_logs(self, state: dict[str, Any]) -> None:
        self.ledger.restore(state["ledger"], self.step)
        if self.log:
            self.log.rewind(self.step)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.optim.num_steps

    def _is_save_due(self, step: int) -> bool:
        """True for the checkpoints of an undisturbed run; those made because it was told to stop are not in it."""
        engine = self.config.engine
        validates = bool(self.data.validation) and step % engine.validate_every_steps == 0
        return validates or step % engine.checkpoint_every_steps == 0

    @property
    def samples_seen(self) -> int:
        return self.step * self.config.engine.global_batch_size

    # --------------------------------------------------------------------------------------- logging

    def _progress_bar(self) -> tqdm:
        shown = self.config.logging.progress and distributed.is_main()
        # None: a terminal gets the bar; a log file, in which it would be one endless line, gets `_log`'s lines instead.
        disable = None if shown else True
        total = self.config.optim.num_steps
        return tqdm(total=total, initial=self.step, desc=self.config.name, unit="step", disable=disable, smoothing=0.1)

    def _log(self, report: UpdateReport, bar: tqdm) -> None:
        bar.update()
        norms = {f"gradient_norm/{name}": norm for name, norm in report.gradient_norms.items()}
        if report.applied:
            for name, value in {**report.terms, **norms}.items():
                sums = self._window.setdefault(name, [0.0, 0])
                sums[0] += value
                sums[1] += 1
        if not self._is_due(self.config.logging.log_every_steps):
            return
        values: dict[str, Any] = {name: total / count for name, (total, count) in self._window.items()}
        for trainable in self.updater.trainables:
            rates = trainable.learning_rates()
            values |= {f"learning_rate/{trainable.name}/{group}": rate for group, rate in rates.items()}
        values |= {
            "substituted_samples": self.ledger.num_substituted,
            "skipped_updates": self.ledger.num_skipped,
            "spikes": self.ledger.num_spikes,
            "rewinds": len(self.decisions.rewinds),
        }
        values |= self.rates.summary()
        values |= {
            "save_seconds": self._last_save.total_seconds if self._last_save else None,
            "save_blocked_seconds": self._last_save.blocked_seconds if self._last_save else None,
        }
        self._window.clear()
        self.rates.restart_window()
        if self.log:
            self.log.write("train", self.step, self.samples_seen, values)
        if "loss" in values:
            self._show(f"loss {values['loss']:.4f}, {values['clips_per_second']:.1f} clips/s", bar)

    def _show(self, text: str, bar: tqdm) -> None:
        bar.set_postfix_str(text)
        if bar.disable and self.config.logging.progress and distributed.is_main():
            logger.info("step %d of %d: %s", self.step, self.config.optim.num_steps, text)

    # --------------------------------------------------------------------------------------- validating

    def _validate(self) -> Validation | None:
        if not self.data.validation:
            return None
        started = time.monotonic()
        self.validator.load(self.updater.model)
        validation = self.validator.run(
            self._watched("validating", self.data.validation_batches()), self.data.validation
        )
        if self.log:
            numbers = {**validation.numbers, "seconds": time.monotonic() - started}
            self.log.write("validation", self.step, self.samples_seen, numbers)
        if validation.value is not None:
            logger.info("step %d: validation %s %.4f", self.step, validation.metric, validation.value)
        self.rates.restart_window()
        return validation

    def _draws_panel(self) -> bool:
        every = self.config.logging.panel_every_steps
        return bool(every and self.config.stage == "pretrain" and self.data.validation and self._is_due(every))

    def _draw_panel(self) -> None:
        """Every rank loads the weights (a collective), rank 0 draws."""
        self.watchdog.mark("drawing", self.step)
        self.validator.load(self.updater.model)
        if not self.log:
            return
        path = self.config.run_dir / "panels" / f"step-{self.step}.png"
        try:
            batch = self.data.panel_batch(panels.NUM_CLIPS)
            reconstruction = self.validator.reconstruct(batch)
            panels.draw_panel(reconstruction, batch.keys, path, title=f"{self.config.name}, step {self.step}")
            self.log.write_image("reconstruction", path, self.step, self.samples_seen)
        except (OSError, AvffError) as error:  # a full disk, a bad clip; nothing depends on the picture
            logger.warning("step %d: no panel: %s", self.step, error)

    # --------------------------------------------------------------------------------------- saving

    def _save(self, validation: Validation | None) -> None:
        self.watchdog.mark("saving", self.step)
        about = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "validation": validation.as_state() if validation else None,
        }
        state = {
            **about,
            "data_hash": self.data.hash,
            "world_size": distributed.world_size(),
            "zero_stage": self.config.engine.zero_stage,
            "build": self.data.build,
            **self.about.origin._asdict(),
            "avff_version": self.about.sidecar["avff_version"],
            "code_revision": self.about.sidecar["code_revision"],
            "ledger": self.ledger.counters(),
            "num_rewinds": len(self.decisions.rewinds),
            "window": self._window,
            "recent_losses": self.spikes.state(),
            "productive_seconds": self.rates.productive_seconds,
            "first_start_unix": self.rates.first_start_unix,
        }
        sidecar = {**self.about.sidecar, **about}
        for outcome in self.saver.begin(self.step, state, sidecar, self._make_logs_durable):
            self._note_save(outcome)
        self.rates.restart_window()

    def _make_logs_durable(self) -> None:
        """No checkpoint is younger than the lines up to it."""
        self.ledger.make_durable()
        self.decisions.make_durable()
        if self.log:
            self.log.make_durable()

    def _finish_save(self) -> None:
        """Waits for a save that is under way; a collective."""
        self._note_save(self.saver.finish())

    @contextmanager
    def _no_save_is_lost(self) -> Iterator[None]:
        """Where the block stops the run on all ranks alike, a save that is under way is finished first."""
        try:
            yield
        except TrainingError:
            self._finish_save()
            raise

    def _note_save(self, outcome: SaveOutcome | None) -> None:
        if outcome is None or not outcome.committed:
            return
        self.saved_step, self._last_save = outcome.step, outcome
        if self.log:
            self.log.write_checkpoint(outcome.step)
        grace = self.config.engine.grace_seconds
        if self.stop_seconds() > grace and not self._warned_of_grace:
            self._warned_of_grace = True
            logger.warning(
                "a stop may take %.0f s (the rest of a step, validation and panel, a save), more than "
                "engine.grace_seconds=%g; give the job more time between signal and kill",
                self.stop_seconds(),
                grace,
            )
