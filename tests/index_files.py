"""Shard directories with an index of any size and empty tars, for what reads no media: opening, planning, seeking."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avff.data.index import IndexRow, Member, ShardInfo, index_bytes, index_path
from avff.data.shards import ShardDirectory, open_directory, write_manifest

ENTRY_BYTES = 4096


def index_row_of(key: str, shard: str = "shard-000000.tar", place: int = 0, **columns: Any) -> IndexRow:
    """Returns the row of the `place`-th sample of a shard; columns as IndexRow names them."""
    start = place * ENTRY_BYTES
    members = (Member("flac", start + 512, 100, 1), Member("face0.mp4", start + 1024, 100, 2))
    row = IndexRow(
        key=key,
        shard=shard,
        offset=start,
        length=ENTRY_BYTES,
        members=members,
        source_key=key,
        dataset="made",
        split="train",
        group_ids=(f"person_{key}",),
        is_fake=0,
        video_is_fake=0,
        audio_is_fake=0,
        category="RVRA",
        methods=(),
        status=("OK",),
        duration_seconds=3.2,
        usable_seconds=3.2,
        frames_per_second=5.0,
        num_tracks=1,
    )
    return row._replace(**columns)


def write_indexed_directory(
    path: Path, shard_sizes: Sequence[int], columns: Callable[[int], dict[str, Any]] = lambda number: {}
) -> ShardDirectory:
    """Writes and opens a directory of real indices beside empty tars.

    Args:
        shard_sizes: samples of each shard. Sample n of the folder `a` has the key `a0000000` + n.
        columns: index columns of sample n that differ from a real, usable clip of split `train`.
    """
    path.mkdir(parents=True)
    infos, number = [], 0
    for s, size in enumerate(shard_sizes):
        name = f"shard-{s:06d}.tar"
        rows = [
            index_row_of(f"{path.name}{n:07d}", name, n - number, **columns(n)) for n in range(number, number + size)
        ]
        number += size
        info = ShardInfo(name, size, size * ENTRY_BYTES, hashlib.sha256(repr(rows).encode()).hexdigest(), "")
        content = index_bytes(info, rows)
        index_path(path, name).write_bytes(content)
        with (path / name).open("wb") as tar:
            tar.truncate(info.bytes)
        infos.append(info._replace(index_sha256=hashlib.sha256(content).hexdigest()))
    write_manifest(path, infos, build={}, arguments={}, rejects={})
    return open_directory(path)
