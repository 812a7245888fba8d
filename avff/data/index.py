"""One index row per stored sample: where its bytes lie and every column that filters and weights may use.

A shard `name.tar` has an index `name.index.jsonl` beside it: the first line describes the tar (`ShardInfo` without
the index's own hash), each further line is one `IndexRow`. So that filtering, balancing and counting open no tar.
"""

import hashlib
import json
from collections.abc import Hashable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from avff.errors import ShardError
from avff.schema import SampleMetadata

MAX_SOUND_GAP_SECONDS = 0.02
"""Sound may end this much before the picture; the rest of the last window is silence (see avff.windows)."""
_TIME_TOLERANCE_SECONDS = 1e-6


class Member(NamedTuple):
    """One tar member of a sample.

    Attributes:
        name: without the key, such as `flac` or `face0.mp4`.
        offset: of the member's content in the tar file, in bytes.
        length: of the content, in bytes.
        crc32: of the content.
    """

    name: str
    offset: int
    length: int
    crc32: int


class IndexRow(NamedTuple):
    """One sample as filters and weights see it; labels are 0 real, 1 fake, None unknown.

    Attributes:
        shard: file name of the tar.
        offset, length: range of the sample's tar entries, headers and padding included.
        usable_seconds: longest stretch over which one track (or the whole frame) and the sound both exist.
    """

    key: str
    shard: str
    offset: int
    length: int
    members: tuple[Member, ...]
    source_key: str
    dataset: str
    split: str
    group_ids: tuple[str, ...]
    is_fake: int | None
    video_is_fake: int | None
    audio_is_fake: int | None
    category: str | None
    methods: tuple[str, ...]
    status: tuple[str, ...]
    duration_seconds: float
    usable_seconds: float
    frames_per_second: float
    num_tracks: int

    def can_hold(self, clip_seconds: float) -> bool:
        """True where face (or frame) and sound are there and last long enough for a clip."""
        return self.status == ("OK",) and self.usable_seconds + _TIME_TOLERANCE_SECONDS >= clip_seconds


_columns = itemgetter(*IndexRow._fields)


class ShardInfo(NamedTuple):
    """One finished shard as the manifest lists it."""

    name: str
    num_samples: int
    bytes: int
    sha256: str
    index_sha256: str


def usable_seconds(metadata: SampleMetadata) -> float:
    """Returns the longest time that one video member and the sound share; 0 without picture or sound.

    Sound that ends at most MAX_SOUND_GAP_SECONDS early counts as complete.
    """
    if metadata.status != ["OK"]:
        return 0.0
    rate = metadata.video.fps
    spans = [(t.first_frame, t.first_frame + t.num_frames) for t in metadata.tracks] or [(0, metadata.video.num_frames)]
    sound_stop = metadata.audio.num_samples / metadata.audio.sample_rate_hz + MAX_SOUND_GAP_SECONDS
    return max(0.0, *(min(stop / rate, sound_stop) - start / rate for start, stop in spans))


def index_row(metadata: SampleMetadata, shard: str, offset: int, length: int, members: tuple[Member, ...]) -> IndexRow:
    """Returns the row of a sample that was written at [offset, offset + length) of a shard."""
    return IndexRow(
        key=metadata.key,
        shard=shard,
        offset=offset,
        length=length,
        members=members,
        source_key=metadata.source_key,
        dataset=metadata.dataset,
        split=metadata.split,
        group_ids=tuple(metadata.group_ids),
        is_fake=metadata.is_fake,
        video_is_fake=metadata.video_is_fake,
        audio_is_fake=metadata.audio_is_fake,
        category=metadata.category,
        methods=tuple(metadata.methods),
        status=tuple(metadata.status),
        duration_seconds=metadata.video.duration_seconds,
        usable_seconds=usable_seconds(metadata),
        frames_per_second=metadata.video.fps,
        num_tracks=len(metadata.tracks),
    )


def index_path(directory: Path, shard: str) -> Path:
    return directory / f"{shard.removesuffix('.tar')}.index.jsonl"


def index_bytes(info: ShardInfo, rows: list[IndexRow]) -> bytes:
    """Returns the index file of a shard; `info.index_sha256` is left out, since it is the hash of these bytes."""
    header = {name: value for name, value in info._asdict().items() if name != "index_sha256"}
    lines = [header, *(row._asdict() for row in rows)]
    return "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines).encode()


def read_index(path: Path) -> tuple[ShardInfo, list[IndexRow]]:
    """Reads and checks one index file.

    Raises:
        ShardError: missing, torn, of another version, or its rows do not tile the tar.
    """
    if not path.is_file():
        raise ShardError(f"{path}: this index is missing; run tools/make_shards.py again, which restores it")
    content = path.read_bytes()
    try:
        # One call for all lines takes a third of the time of one call per line.
        header, *lines = json.loads("[" + content.decode().rstrip("\n").replace("\n", ",") + "]")
        info = ShardInfo(**header, index_sha256=hashlib.sha256(content).hexdigest())
        shared: dict[Hashable, Any] = {}
        rows = [_row(line, shared) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise ShardError(f"{path}: not an index that this avff reads ({error}); rebuild the shard") from error
    if len(rows) != info.num_samples:
        raise ShardError(f"{path}: holds {len(rows)} rows of {info.num_samples} promised; rebuild the shard")
    stop = 0
    for row in rows:
        if row.offset != stop or row.shard != info.name:
            raise ShardError(
                f"{path}: sample {row.key!r} lies at byte {row.offset} of {row.shard}, expected byte {stop} of "
                f"{info.name}; rebuild the shard"
            )
        stop += row.length
    if stop > info.bytes:
        raise ShardError(f"{path}: samples end at byte {stop}, {info.name} has {info.bytes}; rebuild the shard")
    return info, rows


def _row(values: dict[str, Any], shared: dict[Hashable, Any]) -> IndexRow:
    """Returns a row; what many rows have in common is kept in memory once, through `shared`."""
    if len(values) != len(IndexRow._fields):
        raise ValueError(f"a row has {len(values)} columns instead of {len(IndexRow._fields)}")
    share = shared.setdefault
    values["members"] = tuple(
        [Member(share(name, name), offset, length, crc32) for name, offset, length, crc32 in values["members"]]
    )
    values["group_ids"] = tuple(values["group_ids"])
    for name in ("methods", "status"):
        several = tuple(values[name])
        values[name] = share(several, several)
    for name in ("shard", "dataset", "split", "category"):
        values[name] = share(values[name], values[name])
    return IndexRow._make(_columns(values))


def check_unique_keys(rows: list[IndexRow], where: str) -> None:
    """Refuses a shard or directory with a key twice.

    Raises:
        ShardError: names the key and both shards; or there is no sample at all.
    """
    if not rows:
        raise ShardError(f"{where}: holds no sample")
    if len({row.key for row in rows}) == len(rows):
        return
    seen: dict[str, str] = {}
    for row in rows:
        if row.key in seen:
            raise ShardError(
                f"{where}: key {row.key!r} is in {seen[row.key]} and again in {row.shard}; keys are unique"
            )
        seen[row.key] = row.shard


def check_groups(rows: list[IndexRow], where: str) -> None:
    """Refuses a directory with a person or original video in two splits.

    Raises:
        ShardError: names a group, its splits, and how many such groups there are.
    """
    split_of: dict[str, str] = {}
    mixed: dict[str, set[str]] = {}
    for row in rows:
        for group in row.group_ids:
            if split_of.setdefault(group, row.split) != row.split:
                mixed.setdefault(group, {split_of[group]}).add(row.split)
    if mixed:
        group = min(mixed)
        raise ShardError(
            f"{where}: {len(mixed)} groups are in more than one split, such as {group!r} in "
            f"{' and '.join(map(repr, sorted(mixed[group])))}; a person or original video belongs to one split: correct the split "
            "column and rebuild"
        )
