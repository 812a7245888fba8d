"""One source's samples on the disk, until they are laid into a shard: the unit that a rerun does not redo."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from avff.build_config import BuildConfig
from avff.building.locks import one_at_a_time
from avff.building.samples import build_samples
from avff.building.sources import Source
from avff.data.index import index_path, read_index
from avff.data.shards import Sample, ShardDirectory, read_sample, write_shard
from avff.errors import MediaError
from avff.files import write_durably
from avff.media.boxes import BoxTracks

PARTS_FOLDER = ".parts"
"""Within the shard directory."""
_REPORT, _BEGUN = ".json", ".begun"


class Reject(NamedTuple):
    """A source, or one segment of it, that is not in the shards."""

    source_path: str
    reason: str
    detail: str


class Part(NamedTuple):
    """What came of one source; written after its samples, so that it says the part is whole."""

    num_bytes: int
    rejects: list[Reject]


class Task(NamedTuple):
    """Everything a worker needs for one source."""

    directory: Path
    number: int
    source: Source
    config: BuildConfig
    boxes: BoxTracks | None
    reject: frozenset[str]


def build_part(task: Task) -> Part:
    """Builds one source into `part-N.tar` and `part-N.json`, or returns what an earlier run left of it.

    `part-N.begun` is there meanwhile, and stays if this process dies.
    """
    if (part := load_part(task.directory, task.number)) is not None:
        return part
    begun = task.directory / f"part-{task.number:08d}{_BEGUN}"
    with one_at_a_time(begun):
        part = load_part(task.directory, task.number) or _build_part(task)
        begun.unlink(missing_ok=True)
    return part


def _build_part(task: Task) -> Part:
    kept: list[Sample] = []
    rejects: list[Reject] = []
    try:
        for sample in build_samples(task.source, task.config, task.boxes):
            reasons = task.reject.intersection(sample.metadata.status)
            if reasons:
                detail = f"segment {sample.metadata.segment}, rejected on request"
                rejects.append(Reject(task.source.name, " ".join(sorted(reasons)), detail))
            else:
                kept.append(sample)
    except MediaError as error:
        detail = str(error).removeprefix(f"{task.source.path}: ")
        rejects.append(Reject(task.source.name, error.reason, detail))
    info = write_shard(task.directory, _tar_name(task.number), kept) if kept else None
    part = Part(info.bytes if info else 0, rejects)
    write_durably(_report_path(task.directory, task.number), json.dumps(part._asdict()).encode())
    return part


def finished_parts(directory: Path) -> set[int]:
    """Returns the numbers of the sources whose part is whole; one listing, which also shows what other machines wrote."""
    return _numbers(directory, _REPORT)


def begun_parts(directory: Path) -> set[int]:
    """Returns the numbers of the sources that are being read, or were when a process died."""
    return _numbers(directory, _BEGUN) - finished_parts(directory)


def load_part(directory: Path, number: int) -> Part | None:
    """Returns the finished part of a source, or None."""
    path = _report_path(directory, number)
    if not path.is_file():
        return None
    values = json.loads(path.read_bytes())
    return Part(values["num_bytes"], [Reject(*reject) for reject in values["rejects"]])


def read_part(directory: Path, number: int) -> Iterator[Sample]:
    """Yields the samples of a finished part in order."""
    index = index_path(directory, _tar_name(number))
    if index.is_file():
        folder = ShardDirectory(directory, {}, [], [])
        for row in read_index(index)[1]:
            yield read_sample(folder, row)


def remove_part(directory: Path, number: int) -> None:
    """Deletes a part whose samples are in a shard."""
    tar = directory / _tar_name(number)
    for path in (_report_path(directory, number), tar, index_path(directory, tar.name)):
        path.unlink(missing_ok=True)


def _tar_name(number: int) -> str:
    return f"part-{number:08d}.tar"


def _report_path(directory: Path, number: int) -> Path:
    return directory / f"part-{number:08d}{_REPORT}"


def _numbers(directory: Path, suffix: str) -> set[int]:
    if not directory.is_dir():
        return set()
    names = (entry.name for entry in os.scandir(directory))
    matches = (re.fullmatch(rf"part-(\d+){re.escape(suffix)}", name) for name in names)
    return {int(match[1]) for match in matches if match}
