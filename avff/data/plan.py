"""The plan: which samples are in global step s, as a pure function of (manifests, config, s).

Ranks, loader workers, restarts and bad samples do not enter. State is one integer, the step; `Plan.hash`
says whether a plan is the one that a checkpoint was trained with.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from avff.config import Config, DataConfig
from avff.data.index import IndexRow
from avff.data.order import Order
from avff.data.selection import StoredSample, check_held_out, select_samples, trained_splits
from avff.data.shards import ShardDirectory
from avff.data.signature import plan_signature, signature_hash
from avff.data.weights import check_weights, sampling_weights
from avff.data.windows import check_rate
from avff.errors import ConfigError, ShardError
from avff.seeding import derive_seed

MAX_SUBSTITUTES = 8


class Entry(NamedTuple):
    """One sample to come.

    Attributes:
        position: on the endless line; global step x samples per step + place among them.
        epoch: which passage over the samples.
        occurrence: how often the sample came before in this epoch; -1 - position for a substitute.
        sample: directory and row.
    """

    position: int
    epoch: int
    occurrence: int
    sample: StoredSample


class Plan:
    """The endless, seekable order of samples; build it with `build_plan`.

    A step takes `samples_per_step` samples of the line and gives each `num_repeats` clips. Place i of the global batch
    is sample i % samples_per_step, repeat i // samples_per_step, so that any run of up to `samples_per_step` places
    that does not cross a multiple of it holds distinct samples.

    Attributes:
        num_samples: per epoch.
        samples: the distinct ones among them.
        order: which of the samples stands where on the line.
        dropped: samples of the directories that filters left out, per reason.
        signature: what decides the order, as plain values (avff.data.signature); `hash` is its hash.
    """

    def __init__(
        self,
        samples: list[StoredSample],
        order: Order,
        *,
        seed: int,
        samples_per_step: int,
        signature: dict[str, Any],
        dropped: dict[str, int],
        num_repeats: int = 1,
    ):
        self.samples = samples
        self.num_samples = order.samples_per_epoch
        self.samples_per_step = samples_per_step
        self.num_repeats = num_repeats
        self.signature = signature
        self.dropped = dropped
        self.hash = signature_hash(signature)
        self.order = order
        self._seed = seed
        self._peers: dict[tuple, np.ndarray] = {}

    def entries(self, step: int) -> list[Entry]:
        """Returns the samples of a global step, in batch order."""
        return self.at(np.arange(step * self.samples_per_step, (step + 1) * self.samples_per_step))

    def at(self, positions: np.ndarray) -> list[Entry]:
        """Returns the samples at some positions of the line (int64)."""
        places = self.order.at(positions)
        columns = (positions.tolist(), *(column.tolist() for column in places))
        return [Entry(p, epoch, occurrence, self.samples[i]) for p, epoch, i, occurrence in zip(*columns, strict=True)]

    def clip_seeds(self, entry: Entry) -> list[int]:
        """Returns for each repeat of a sample the 63 bits that decide every random choice about that clip."""
        row = entry.sample.row
        first = derive_seed(self._seed, entry.epoch, row.dataset, row.key, entry.occurrence)
        return [first, *(derive_seed(first, "repeat", repeat) for repeat in range(1, self.num_repeats))]

    def substitutes(self, entry: Entry) -> Iterator[Entry]:
        """Yields, in order, the samples to try when an entry cannot be decoded: same split and labels.

        A pure function of the position, so every topology takes the same one. At most MAX_SUBSTITUTES.
        """
        peers = self._peers_of(entry.sample.row)
        tried = {id(entry.sample.row)}
        for attempt in range(4 * MAX_SUBSTITUTES):
            drawn = derive_seed(self._seed, "substitute", entry.position, attempt) % len(peers)
            sample = self.samples[peers[drawn]]
            if id(sample.row) in tried:
                continue
            tried.add(id(sample.row))
            yield entry._replace(sample=sample, occurrence=-1 - entry.position)
            if len(tried) > MAX_SUBSTITUTES:
                return

    def _peers_of(self, row: IndexRow) -> np.ndarray:
        kind = _kind(row)
        if kind not in self._peers:
            alike = [i for i, sample in enumerate(self.samples) if _kind(sample.row) == kind]
            self._peers[kind] = np.array(alike)
        return self._peers[kind]


def build_plan(config: Config, train: Sequence[ShardDirectory], validation: Sequence[ShardDirectory] = ()) -> Plan:
    """Plans training over opened directories.

    Args:
        train: the directories of `config.data.train`, in that order.
        validation: those of `config.data.validation`; people held out there are kept out of training.

    Raises:
        ConfigError: nothing to train on is configured, `test` is to be trained on, a wrong balance column or weight,
            or video stored at a lower rate than the clip's.
        ShardError: no sample passes the filters, or a held-out person would be trained on.
    """
    data = config.data
    _check(data)
    splits = trained_splits(data.train_split)
    selection = select_samples(train, splits=splits, labels=data.labels, min_seconds=config.clip.duration_seconds)
    check_held_out(selection.samples, [*train, *validation], splits)
    weight_M = sampling_weights(data, train, selection.samples)
    samples = [sample for sample, weight in zip(selection.samples, weight_M, strict=True) if weight]
    if not samples:
        raise ShardError(_nothing_left(config, train, selection.dropped))
    slowest = min(samples, key=lambda sample: sample.row.frames_per_second)
    check_rate(slowest.row.frames_per_second, config.clip, f"{slowest.directory.path}: sample {slowest.row.key!r}")
    order = Order(
        shard_numbers(samples),
        weight_M[weight_M > 0],
        seed=config.seed,
        window_shards=data.shuffle_window_shards,
        num_runs=config.num_runs,
    )
    return Plan(
        samples,
        order,
        seed=config.seed,
        samples_per_step=config.samples_per_step,
        num_repeats=data.windows_per_sample,
        signature=plan_signature(config, train),
        dropped=selection.dropped,
    )


def _check(data: DataConfig) -> None:
    if not data.train:
        raise ConfigError("data.train lists no shard directory; add `data: {train: [{path: shards/NAME}]}`")
    if data.train_split == "test":
        raise ConfigError("data.train_split is 'test'; people of a test split are never trained on, use 'train'")
    if data.validation_split == "test":
        raise ConfigError(
            "data.validation_split is 'test'; it would choose checkpoint and threshold on the people that the result is "
            "measured on, use 'val'"
        )
    if data.shuffle_window_shards < 1:
        raise ConfigError(f"data.shuffle_window_shards is {data.shuffle_window_shards}; it has to be at least 1")
    check_weights(data)


def _nothing_left(config: Config, train: Sequence[ShardDirectory], dropped: dict[str, int]) -> str:
    read = sum(len(directory.rows) for directory in train)
    reasons = ", ".join(f"{count} by {reason}" for reason, count in sorted(dropped.items())) or "all by weight 0"
    return (
        f"{', '.join(str(directory.path) for directory in train)}: none of {read} samples is left to train on ({reasons}); "
        f"data.train_split is {config.data.train_split!r}, data.labels {config.data.labels!r}, and a clip lasts "
        f"{config.clip.duration_seconds} s. Labels and splits are given when shards are built: --is-fake, --split, or a CSV's columns"
    )


def shard_numbers(samples: list[StoredSample]) -> np.ndarray:
    numbers: dict[tuple[int, str], int] = {}
    return np.array([numbers.setdefault((id(s.directory), s.row.shard), len(numbers)) for s in samples])


def _kind(row: IndexRow) -> tuple:
    return row.split, row.is_fake, row.video_is_fake, row.audio_is_fake, row.category
