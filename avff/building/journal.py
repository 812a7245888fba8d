"""What a build was asked for and which shards are finished: `build.json` in the shard directory.

It is rewritten after every shard and stays, so that a rerun knows what is done, refuses another request, and can
rebuild a lost shard from exactly its sources.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from avff.build_config import BuildConfig
from avff.building.parts import PARTS_FOLDER, Reject
from avff.building.sources import Source
from avff.data.shards import read_shard_info
from avff.errors import ConfigError, ShardError
from avff.files import write_durably
from avff.strict_yaml import flatten

JOURNAL_NAME = "build.json"


class FinishedShard(NamedTuple):
    """Sources [first, stop) of the build; `name` is empty if all of them were rejected."""

    name: str
    first: int
    stop: int
    rejects: list[Reject]


def request_of(
    sources: Sequence[Source], config: BuildConfig, shard_bytes: int, reject: frozenset[str], boxes_sha256: str
) -> dict[str, Any]:
    """Returns everything that the bytes of a build depend on, as flat plain values."""
    digest = hashlib.sha256()
    for source in sources:
        values = {**asdict(source), "path": "", "bytes": source.path.stat().st_size}
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    return {
        **{f"build.{name}": value for name, value in flatten(config).items()},
        "num_sources": len(sources),
        "sources_sha256": digest.hexdigest(),
        "shard_bytes": shard_bytes,
        "reject": sorted(reject),
        "boxes_sha256": boxes_sha256,
    }


def load_journal(output: Path, request: dict[str, Any]) -> list[FinishedShard]:
    """Returns the finished shards of an earlier run of the same request; empty for a new directory.

    Raises:
        ConfigError: the directory belongs to another request (every differing value is named), or is not empty and
            not a build.
    """
    path = output / JOURNAL_NAME
    if not path.is_file():
        if output.exists() and (not output.is_dir() or any(path.name != PARTS_FOLDER for path in output.iterdir())):
            raise ConfigError(f"{output}: exists and was not built by make_shards; name a new folder with --output")
        return []
    values = json.loads(path.read_bytes())
    different = [
        f"{name} was {values['request'].get(name)!r}, now {request.get(name)!r}"
        for name in sorted({*values["request"], *request})
        if values["request"].get(name) != request.get(name)
    ]
    if different:
        raise ConfigError(
            f"{output}: was built with other arguments: {'; '.join(different)}; name a new folder with --output, or "
            "delete this one"
        )
    return [
        FinishedShard(s["name"], s["first"], s["stop"], [Reject(*r) for r in s["rejects"]]) for s in values["shards"]
    ]


def save_journal(output: Path, request: dict[str, Any], shards: Sequence[FinishedShard]) -> None:
    values = {"request": request, "shards": [shard._asdict() for shard in sorted(shards, key=lambda s: s.first)]}
    write_durably(output / JOURNAL_NAME, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def is_whole(output: Path, shard: FinishedShard) -> bool:
    """Says whether a finished shard is still there in full length."""
    if not shard.name:
        return True
    try:
        read_shard_info(output, shard.name)
    except ShardError:
        return False
    return True
