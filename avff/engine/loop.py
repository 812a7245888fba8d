"""The loop of every stage: read, update, log, validate, save."""

import logging
import time
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from avff import distributed
from avff.config import Config
from avff.data.stream import StepBatch
from avff.engine import agreement, checkpoint, panels
from avff.engine.ledger import Ledger
from avff.engine.metrics_log import MetricsLog
from avff.engine.origin import Origin
from avff.engine.rates import Rates
from avff.engine.run_data import RunData
from avff.engine.signals import StopFlag
from avff.engine.update import Updater, UpdateReport
from avff.engine.validation import Validation, Validator
from avff.errors import TrainingError

logger = logging.getLogger(__name__)


class Loop:
    """A run between two starts.

    Attributes:
        step: updates done.
    """

    def __init__(
        self,
        config: Config,
        updater: Updater,
        data: RunData,
        validator: Validator,
        ledger: Ledger,
        rates: Rates,
        origin: Origin,
        sidecar: dict[str, Any],
        window: dict[str, list[float]],
        step: int,
    ):
        self.config = config
        self.updater = updater
        self.data = data
        self.validator = validator
        self.ledger = ledger
        self.rates = rates
        self.origin = origin
        self.sidecar = sidecar
        self.step = step
        self.log = agreement.everywhere(lambda: MetricsLog(config, resume_step=step) if distributed.is_main() else None)
        # Sums and counts since the last log line; part of a checkpoint, so that a resumed line repeats to the bit.
        self._window = window

    def run(self, stop: StopFlag) -> bool:
        """Trains to the end, or until some rank is told to stop; returns whether the end was reached."""
        with logging_redirect_tqdm():
            saved_step = self._train(stop)
        if saved_step != self.step:
            raise TrainingError(
                f"{self.config.run_dir}: step {self.step} could not be saved, see the log; step {saved_step} is the "
                "newest checkpoint; make room on the disk and start the same command again"
            )
        if self.log:
            self.log.close()
        return self.step == self.config.optim.num_steps

    def _train(self, stop: StopFlag) -> int:
        """Returns the step of the newest checkpoint."""
        bar = self._progress_bar()
        saved_step, waiting_since = self.step, time.monotonic()
        for batch in self.data.train_steps(self.step):
            data_wait = time.monotonic() - waiting_since
            started = time.monotonic()
            report = self._update(batch, stop)
            self.rates.count(self.config.engine.global_batch_size, data_wait, time.monotonic() - started)
            self._log(report, bar)
            validation = self._validate() if self._is_due(self.config.engine.validate_every_steps) else None
            if self._draws_panel():
                self._draw_panel()
            if validation or self._is_due(self.config.engine.checkpoint_every_steps) or report.stop:
                saved_step = self.step if self._save(validation) else saved_step
            if report.stop:
                break
            waiting_since = time.monotonic()
        bar.close()
        return saved_step

    def _update(self, batch: StepBatch, stop: StopFlag) -> UpdateReport:
        report = self.updater.update(
            batch.step, batch.micro_batches, stop=stop.is_set, num_substituted=len(batch.substitutions)
        )
        self.step = batch.step + 1
        if report.num_substituted:
            self.ledger.substituted(self.step, batch.substitutions)
        if report.applied:
            self.ledger.applied()
        else:
            logger.warning("step %d: not finite, skipped on all ranks", self.step)
            self.ledger.skipped(self.step, self.updater.bad_batches, report.gradient_norms)
        return report

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.optim.num_steps

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
        values |= {"substituted_samples": self.ledger.num_substituted, "skipped_updates": self.ledger.num_skipped}
        values |= self.rates.summary()
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
        validation = self.validator.run(self.data.validation_batches(), self.data.validation)
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
        self.validator.load(self.updater.model)
        if self.log:
            path = self.config.run_dir / "panels" / f"step-{self.step}.png"
            batch = self.data.panel_batch(panels.NUM_CLIPS)
            panels.draw_panel(
                self.validator.reconstruct(batch), batch.keys, path, title=f"{self.config.name}, step {self.step}"
            )
            self.log.write_image("reconstruction", path, self.samples_seen)

    # --------------------------------------------------------------------------------------- saving

    def _save(self, validation: Validation | None) -> bool:
        if self.log:
            self.log.make_durable()
        about = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "validation": validation.as_state() if validation else None,
        }
        state = {
            **about,
            "plan_hash": self.data.plan.hash,
            "world_size": distributed.world_size(),
            "zero_stage": self.config.engine.zero_stage,
            "build": self.data.build,
            **self.origin._asdict(),
            "avff_version": self.sidecar["avff_version"],
            "code_revision": self.sidecar["code_revision"],
            "ledger": self.ledger.counters(),
            "window": self._window,
            "productive_seconds": self.rates.productive_seconds,
            "first_start_unix": self.rates.first_start_unix,
        }
        sidecar = {**self.sidecar, **about}
        trainables, run_dir = self.updater.trainables, self.config.run_dir
        saved = checkpoint.save(run_dir, self.step, trainables, state=state, sidecar=sidecar)
        if saved:
            checkpoint.prune(run_dir, self.config.engine.keep_checkpoints)
        self.rates.restart_window()
        return saved
