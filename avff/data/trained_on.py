"""What weights were trained on, as plain records that every later stage inherits, and who is in it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avff.config import Config
from avff.data.selection import StoredSample, select_samples, trained_splits
from avff.data.shards import ShardDirectory, open_directory
from avff.errors import ShardError


class TrainedGroups(NamedTuple):
    """The people and originals behind some weights.

    Attributes:
        where: {group id: shard directory that it was trained on in}.
        notes: one sentence per record that could not be looked up.
    """

    where: dict[str, str]
    notes: list[str]


def training_records(
    config: Config, directories: Sequence[ShardDirectory], samples: Iterable[StoredSample]
) -> list[dict[str, Any]]:
    """Describes a run's training directories and which of their samples it reads.

    Args:
        directories: those of `config.data.train`.
        samples: distinct samples of the plan.

    Returns:
        one record per directory; `trained_groups` finds the same samples again.
    """
    num_samples: dict[Path, int] = {}
    for directory, _ in samples:
        num_samples[directory.path] = num_samples.get(directory.path, 0) + 1
    return [
        {
            "path": str(directory.path),
            "fingerprint": directory.fingerprint,
            "num_samples": num_samples.get(directory.path, 0),
            "splits": sorted(trained_splits(config.data.train_split)),
            "labels": config.data.labels,
            "min_seconds": config.clip.duration_seconds,
        }
        for directory in directories
    ]


def inherited_records(sidecar: dict[str, Any], weights_path: Path) -> list[dict[str, Any]]:
    """Returns what a weight file was trained on; where it does not say, a record that tells so to whoever asks."""
    return sidecar.get("trained_on", [{"path": str(weights_path), "fingerprint": None}])


def join_records(*lists: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns all records in order, each once."""
    joined: list[dict[str, Any]] = []
    for record in (record for records in lists for record in records):
        if record not in joined:
            joined.append(record)
    return joined


def trained_groups(records: Iterable[dict[str, Any]]) -> TrainedGroups:
    """Looks up who was trained on, in the directories that are still on this machine as they were."""
    where: dict[str, str] = {}
    notes: list[str] = []
    for record in records:
        problem, directory = _reopen(record)
        if directory is None:
            notes.append(problem)
            continue
        selection = select_samples(
            [directory], splits=set(record["splits"]), labels=record["labels"], min_seconds=record["min_seconds"]
        )
        for sample in selection.samples:
            where.update(dict.fromkeys(sample.row.group_ids, record["path"]))
    return TrainedGroups(where, list(dict.fromkeys(notes)))


def _reopen(record: dict[str, Any]) -> tuple[str, ShardDirectory | None]:
    """Returns the directory of a record, or a sentence that says why it cannot be looked at."""
    path = record["path"]
    if record["fingerprint"] is None:
        return (
            f"The weights {path} do not record what they were trained on, so nobody checked for the same people.",
            None,
        )
    if not Path(path).is_dir():
        return f"The training shards {path} are not here, so nobody checked them for the same people.", None
    try:
        directory = open_directory(path)
    except ShardError as error:
        return f"Nobody checked the training shards for the same people, for they cannot be read: {error}.", None
    if directory.fingerprint != record["fingerprint"]:
        return (
            f"The training shards {path} were rebuilt since (sha256 {record['fingerprint'][:12]} then, "
            f"{directory.fingerprint[:12]} now), so nobody checked those trained on for the same people."
        ), None
    return "", directory
