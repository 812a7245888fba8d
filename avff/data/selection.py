"""Which stored samples may be used: by split, labels, status and length, and never a person held out."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from avff.config import ShardSource
from avff.data.index import IndexRow
from avff.data.shards import ShardDirectory, open_directory
from avff.errors import ShardError
from avff.seeding import permutation

_HELD_OUT_SPLITS = {"val", "test"}


class StoredSample(NamedTuple):
    """One row and the directory it belongs to; `read_sample(*stored)` reads it."""

    directory: ShardDirectory
    row: IndexRow


class Selection(NamedTuple):
    """What a filter kept.

    Attributes:
        samples: in the order of directories, shards and stored samples.
        dropped: samples left out per reason.
    """

    samples: list[StoredSample]
    dropped: dict[str, int]


def _no_fake(row: IndexRow) -> bool:
    return 1 not in (row.is_fake, row.video_is_fake, row.audio_is_fake)


LABEL_FILTERS: dict[str, Callable[[IndexRow], bool]] = {
    "real": lambda row: row.is_fake == 0 and _no_fake(row),
    "real_or_unknown": _no_fake,
    "known": lambda row: row.is_fake is not None,
    "any": lambda row: True,
}


def open_directories(sources: Sequence[ShardSource]) -> list[ShardDirectory]:
    """Opens every configured directory; see `open_directory` for the errors."""
    return [open_directory(source.path) for source in sources]


def trained_splits(train_split: str) -> set[str]:
    """Returns the splits that training reads: the one named, or all but `test` for an empty text."""
    return {train_split} if train_split else {"", "train", "val"}


def select_samples(
    directories: Sequence[ShardDirectory], *, splits: set[str], labels: str, min_seconds: float
) -> Selection:
    """Keeps the samples that a model can be fed with.

    Args:
        labels: a name in LABEL_FILTERS.
        min_seconds: shortest stretch of picture and sound.
    """
    wanted = LABEL_FILTERS[labels]
    samples: list[StoredSample] = []
    dropped: Counter[str] = Counter()
    for directory in directories:
        for row in directory.rows:
            if row.split not in splits:
                dropped["split"] += 1
            elif not wanted(row):
                dropped["labels"] += 1
            elif row.status != ("OK",):
                dropped["status"] += 1
            elif not row.can_hold(min_seconds):
                dropped["length"] += 1
            else:
                samples.append(StoredSample(directory, row))
    return Selection(samples, dict(dropped))


def check_held_out(training: Sequence[StoredSample], directories: Sequence[ShardDirectory], splits: set[str]) -> None:
    """Refuses a training set that holds a person or original video of a held-out split of any directory.

    Ids are compared over all directories, since one person may be in several data sets; a straddling id
    stops the run rather than being dropped, for either the split or the id is wrong.

    Args:
        directories: all that are configured, for training and validation.
        splits: those that training reads.

    Raises:
        ShardError: names a group, both places, and how many groups there are.
    """
    held_out = _HELD_OUT_SPLITS - splits
    where: dict[str, tuple[str, ShardDirectory]] = {}
    for directory in directories:
        for row in directory.rows:
            if row.split in held_out:
                where.update((group, (row.split, directory)) for group in row.group_ids)
    straddling = {g: sample for sample in training for g in sample.row.group_ids if g in where}
    if straddling:
        group = min(straddling)
        (split, directory), sample = where[group], straddling[group]
        raise ShardError(
            f"{len(straddling)} groups are held out and trained on: {group!r} is in split {split!r} of {directory.path}, "
            f"and sample {sample.row.key!r} (split {sample.row.split!r}) of {sample.directory.path} has it too; move one "
            "of them, or give different people different group_ids, and rebuild"
        )


def check_unseen(validation: Sequence[StoredSample], training: Sequence[StoredSample]) -> None:
    """Refuses to validate on what is trained on, for validation chooses the best checkpoint and the threshold.

    Raises:
        ShardError: names a sample that is in both, or shares a person or original video.
    """
    stored = {(sample.row.key, sample.row.members) for sample in validation}
    groups = {group for sample in validation for group in sample.row.group_ids}
    seen = [s for s in training if (s.row.key, s.row.members) in stored or not groups.isdisjoint(s.row.group_ids)]
    if seen:
        raise ShardError(
            f"{len(seen)} of {len(training)} samples to train on are validated on too, or show a person who is, such as "
            f"{seen[0].row.key!r} (split {seen[0].row.split!r}) of {seen[0].directory.path}; set data.train_split and "
            "data.validation_split to different splits, or validate on other shards"
        )


def check_unshared_keys(samples: Sequence[StoredSample]) -> None:
    """Refuses samples of several directories that could not be told apart, for scores are joined by key.

    Raises:
        ShardError: names a key and both directories.
    """
    owners: dict[str, ShardDirectory] = {}
    for directory, row in samples:
        if row.key in owners:
            raise ShardError(
                f"key {row.key!r} is in {owners[row.key].path} and in {directory.path}; read these directories one by one, "
                "or rebuild one of them from files of other names"
            )
        owners[row.key] = directory


def evaluation_samples(
    directories: Sequence[ShardDirectory], *, split: str, labels: str = "any", limit: int = 0, seed: int = 0
) -> list[StoredSample]:
    """Returns the samples to score, those without face or sound included, so that the caller can list them.

    Args:
        split: split to read; an empty text reads all.
        labels: a name in LABEL_FILTERS.
        limit: keep the first so many of a fixed shuffle; 0 keeps all.
        seed: of that shuffle.
    """
    wanted = LABEL_FILTERS[labels]
    samples = [
        StoredSample(directory, row)
        for directory in directories
        for row in directory.rows
        if (not split or row.split == split) and wanted(row)
    ]
    if not 0 < limit < len(samples):
        return samples
    kept = permutation(len(samples), seed, "evaluation")[:limit]
    return [samples[i] for i in sorted(kept)]
