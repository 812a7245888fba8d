"""What decides the order of a run's data, as plain values that are saved with the run and compared at a restart."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from avff.config import Config
from avff.data.shards import ShardDirectory

PLAN_VERSION = 1
# The fingerprint stands for the shards, and a folder may move.
_NOT_HASHED = ("path", "shards")


def plan_signature(config: Config, train: Sequence[ShardDirectory]) -> dict[str, Any]:
    """Returns every setting and shard that a training plan follows from.

    Args:
        train: the directories of `config.data.train`, in that order.

    Returns:
        settings by name; `directories` has one entry each: path, fingerprint, weight and `shards` (name, num_samples,
        sha256, index_sha256). JSON keeps all of it.
    """
    data = config.data
    # Named only where it has an effect, so that plans without repeats keep their hash.
    repeats = {"windows_per_sample": data.windows_per_sample} if data.windows_per_sample > 1 else {}
    return {
        "plan_version": PLAN_VERSION,
        "seed": config.seed,
        "global_batch_size": config.engine.global_batch_size,
        "num_runs": config.num_runs,
        **repeats,
        "shuffle_window_shards": data.shuffle_window_shards,
        "train_split": data.train_split,
        "labels": data.labels,
        "min_seconds": config.clip.duration_seconds,
        "balance_column": data.balance_column,
        "column_weights": dict(data.column_weights),
        "directories": [
            {**_directory(directory), "weight": source.weight}
            for directory, source in zip(train, data.train, strict=True)
        ],
    }


def validation_signature(validation: Sequence[ShardDirectory]) -> dict[str, Any]:
    """Returns the shards that a run validates on, in the form of `plan_signature`."""
    return {"directories": [_directory(directory) for directory in validation]}


def signature_hash(signature: dict[str, Any]) -> str:
    """Returns the SHA-256 of what decides the order; folders may move without changing it."""
    directories = [
        {name: value for name, value in directory.items() if name not in _NOT_HASHED}
        for directory in signature["directories"]
    ]
    compact = {**signature, "directories": directories}
    return hashlib.sha256(json.dumps(compact, sort_keys=True).encode()).hexdigest()


def _directory(directory: ShardDirectory) -> dict[str, Any]:
    return {
        "path": str(directory.path),
        "fingerprint": directory.fingerprint,
        "shards": [
            {
                "name": shard.name,
                "num_samples": shard.num_samples,
                "sha256": shard.sha256,
                "index_sha256": shard.index_sha256,
            }
            for shard in directory.shards
        ],
    }
