"""The clips of a run: opened shard directories, the training plan, loaders of this rank."""

import logging
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import torch

from avff import distributed
from avff.batch import AVBatch
from avff.config import Config
from avff.data.decoders import DEFAULT_DECODER
from avff.data.plan import build_plan
from avff.data.quarantine import Quarantine
from avff.data.selection import check_unseen, check_unshared_keys, evaluation_samples, open_directories
from avff.data.signature import validation_signature
from avff.data.stream import StepBatch, evaluation_loader, first_windows, train_loader
from avff.data.trained_on import training_records
from avff.data.views import AVView
from avff.engine.plan_record import data_hash
from avff.errors import ShardError

logger = logging.getLogger(__name__)


class RunData:
    """What a run reads.

    Attributes:
        plan: the order of training clips.
        validation: usable validation samples, over all ranks.
        signatures: of `train` and `validation` (avff.data.signature), which a continued run compares.
        trained_on: the training directories, as checkpoints record them.
        build: how the training clips were made (a BuildConfig as plain values), for prediction to do the same.
    """

    def __init__(self, config: Config):
        self.config = config
        decoder = config.data.decoder
        self.view = AVView(config.clip, DEFAULT_DECODER if decoder == "auto" else decoder)
        train, held_out = open_directories(config.data.train), open_directories(config.data.validation)
        self.plan = build_plan(config, train, held_out)
        self.signatures = {"train": self.plan.signature, "validation": validation_signature(held_out)}
        self.trained_on = training_records(config, train, self.plan.samples)
        self.build: dict[str, Any] = train[0].manifest["build"]
        for directory in train:
            if directory.manifest["build"] != self.build:
                logger.warning(
                    "%s was built with other settings than %s; prediction will make clips as the latter",
                    directory.path,
                    train[0].path,
                )
        data = config.data
        samples = evaluation_samples(
            held_out, split=data.validation_split, labels=data.labels, limit=data.max_validation_clips, seed=config.seed
        )
        self.validation = [sample for sample in samples if sample.row.can_hold(config.clip.duration_seconds)]
        check_unshared_keys(self.validation)
        check_unseen(self.validation, self.plan.samples)
        if held_out and not self.validation:
            raise ShardError(
                f"{', '.join(source.path for source in data.validation)}: none of {len(samples)} samples in split "
                f"{data.validation_split!r} with labels {data.labels!r} is long enough and has a face and sound"
            )

    @property
    def hash(self) -> str:
        """SHA-256 of what is trained and validated on."""
        return data_hash(self.signatures)

    def train_steps(self, steps: Sequence[int], quarantine: Quarantine) -> Generator[StepBatch, None, None]:
        """Returns this rank's batches for some steps of the plan; close it to end its workers."""
        engine, data = self.config.engine, self.config.data
        return train_loader(
            self.plan,
            self.view,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            micro_batch_size=engine.micro_batch_size,
            group_size=self.config.group_size,
            num_workers=data.num_workers,
            prefetch_steps=data.prefetch_steps,
            steps=steps,
            timeout_seconds=self.config.faults.decode_timeout_seconds,
            quarantine=quarantine,
            pin_memory=torch.cuda.is_available(),
        )

    def validation_batches(self) -> Iterable[AVBatch]:
        """Returns this rank's share of the validation windows."""
        return evaluation_loader(
            self.validation,
            self.view,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            micro_batch_size=self.config.engine.micro_batch_size,
            num_workers=self.config.data.num_workers,
            timeout_seconds=self.config.faults.decode_timeout_seconds,
            pin_memory=torch.cuda.is_available(),
        )

    def panel_batch(self, num_clips: int) -> AVBatch:
        """Returns the first window of the first validation samples, the same at every step."""
        return first_windows(
            self.validation[:num_clips],
            self.view,
            num_workers=min(1, self.config.data.num_workers),
            timeout_seconds=self.config.faults.decode_timeout_seconds,
        )
