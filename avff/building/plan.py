"""What a shard directory is built from, in the order of its shards, and what of it is still to do."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avff.build_config import BuildConfig
from avff.building.journal import FinishedShard, is_whole, load_journal, request_of
from avff.building.parts import PARTS_FOLDER, Task, begun_parts, finished_parts
from avff.building.sources import Source
from avff.data.shards import MANIFEST_NAME
from avff.errors import ConfigError, ShardError
from avff.media.boxes import BoxTracks
from avff.seeding import derive_seed

logger = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 700_000_000
REJECTABLE = ("NO_FACE", "NO_AUDIO", "TOO_SHORT")
_SHOWN_NAMES = 5


@dataclass(frozen=True)
class Share:
    """One of several equal shares of a build's sources, counted from 0; written `3/8`."""

    index: int
    count: int

    def owns(self, number: int) -> bool:
        """Neighbours in the order go to different shares, so that they end at about the same time."""
        return number % self.count == self.index

    def size(self, total: int) -> int:
        """Returns how many of `total` sources it owns."""
        return len(range(self.index, total, self.count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_share(text: str) -> Share:
    """Reads `3/8`.

    Raises:
        ConfigError: not two numbers, or no such share.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"share {text!r}: write INDEX/COUNT; the shares of 8 are 0/8 to 7/8")
    return Share(int(match[1]), int(match[2]))


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that the bytes of a shard directory depend on.

    Attributes:
        request: the same as flat plain values, which the directory's journal keeps.
        tasks: one per source, in the order of the shards.
    """

    output: Path
    config: BuildConfig
    shard_bytes: int
    request: dict[str, Any]
    tasks: list[Task]

    @property
    def parts(self) -> Path:
        return self.output / PARTS_FOLDER

    def finished_shards(self) -> list[FinishedShard]:
        """Returns the shards that were laid, also those that were lost since; refuses a directory of another request."""
        return load_journal(self.output, self.request)

    def is_complete(self) -> bool:
        shards = self.finished_shards()
        return (self.output / MANIFEST_NAME).is_file() and all(is_whole(self.output, shard) for shard in shards)

    def remaining(self) -> list[Task]:
        """Returns the sources that are in no shard and have no part."""
        there = finished_parts(self.parts)
        for shard in self.finished_shards():
            if is_whole(self.output, shard):
                there.update(range(shard.first, shard.stop))
        return [task for task in self.tasks if task.number not in there]


def plan_build(
    sources: Sequence[Source],
    output: Path,
    config: BuildConfig,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    reject: frozenset[str] = frozenset(),
    boxes: Mapping[str, BoxTracks] | None = None,
) -> BuildPlan:
    """Orders the sources and settles what is built of them; writes nothing.

    The order is a hash of the names, so that labels are mixed over shards.

    Args:
        shard_bytes: a shard closes once its parts reach this size.
        reject: statuses whose samples are left out and listed in rejects.csv.
        boxes: tracks by source name, for mode `boxes`.

    Raises:
        ConfigError: an argument is impossible.
    """
    _check_arguments(sources, config, reject, boxes)
    ordered = sorted(sources, key=lambda source: (derive_seed("shard order", source.name), source.name))
    tasks = [
        Task(output / PARTS_FOLDER, number, source, config, (boxes or {}).get(source.name), reject)
        for number, source in enumerate(ordered)
    ]
    request = request_of(ordered, config, shard_bytes, reject, _digest(boxes))
    return BuildPlan(output=output, config=config, shard_bytes=shard_bytes, request=request, tasks=tasks)


def require_parts(plan: BuildPlan, num_shares: int) -> None:
    """Checks that the builders of all shares are through.

    Raises:
        ShardError: names, share by share, the sources that nobody has built, and those whose reading never ended.
    """
    remaining = plan.remaining()
    begun = begun_parts(plan.parts)
    lines = []
    for share in (Share(index, num_shares) for index in range(num_shares)):
        if missing := [task for task in remaining if share.owns(task.number)]:
            lines.append(f"share {share} lacks {len(missing)}, such as {_names(missing)}")
            if torn := [task for task in missing if task.number in begun]:
                lines[-1] += f"; it ended while it read {_names(torn)}"
    if lines:
        first = f"{plan.output}: {len(remaining)} of {len(plan.tasks)} sources are not built:"
        last = "the logs of these shares say why; the same command again builds only what is missing"
        raise ShardError("\n  ".join([first, *lines, last]))


def _names(tasks: list[Task]) -> str:
    more = f" and {len(tasks) - _SHOWN_NAMES} more" if len(tasks) > _SHOWN_NAMES else ""
    return ", ".join(task.source.name for task in tasks[:_SHOWN_NAMES]) + more


def _check_arguments(
    sources: Sequence[Source], config: BuildConfig, reject: frozenset[str], boxes: Mapping[str, BoxTracks] | None
) -> None:
    if unknown := reject.difference(REJECTABLE):
        raise ConfigError(f"reject {', '.join(sorted(unknown))}: choose among {', '.join(REJECTABLE)}")
    if config.mode != "boxes":
        return
    if boxes is None:
        raise ConfigError("mode boxes needs a box file: add --boxes FILE.csv")
    without = [source.name for source in sources if source.name not in boxes]
    if len(without) == len(sources):
        raise ConfigError(
            f"none of the {len(boxes)} names in the box file, such as {min(boxes, default='')!r}, is a source, such as "
            f"{without[0]!r}; write the path below the input folder"
        )
    if without:
        logger.warning("%d of %d sources have no boxes, such as %s", len(without), len(sources), without[0])


def _digest(boxes: Mapping[str, BoxTracks] | None) -> str:
    if boxes is None:
        return ""
    plain = {name: {t: rows.tolist() for t, rows in tracks.items()} for name, tracks in boxes.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
