"""One stored sample as bytes: tar entries on the way in, stock webdataset's parser on the way out."""

import io
import re
import tarfile
import zlib
from typing import NamedTuple

from webdataset.tariterators import group_by_keys, tar_file_expander

from avff.data.index import IndexRow, Member, index_row
from avff.errors import ShardError
from avff.schema import SampleMetadata, from_json, to_json

_MEMBER_PATTERN = re.compile(r"flac|frame\.mp4|face\d+\.mp4|[a-z0-9_]+\.npy")


class Sample(NamedTuple):
    """One stored sample in memory.

    Attributes:
        metadata: what `<key>.json` holds.
        members: content of every other member by name: `flac`, `frame.mp4`, `face0.mp4`, ...
    """

    metadata: SampleMetadata
    members: dict[str, bytes]


def sample_bytes(sample: Sample, shard: str, offset: int) -> tuple[bytes, IndexRow]:
    """Returns the sample's tar entries, in sorted order, and its index row."""
    contents = {"json": to_json(sample.metadata), **sample.members}
    chunks: list[bytes] = []
    members: list[Member] = []
    length = 0
    for name in sorted(contents):
        content = contents[name]
        header = tarfile.TarInfo(f"{sample.metadata.key}.{name}")  # mtime, uid and gid are 0 by default
        header.size = len(content)
        padding = -len(content) % tarfile.BLOCKSIZE
        chunks += [header.tobuf(tarfile.USTAR_FORMAT), content, b"\0" * padding]
        members.append(Member(name, offset + length + tarfile.BLOCKSIZE, len(content), zlib.crc32(content)))
        length += tarfile.BLOCKSIZE + len(content) + padding
    return b"".join(chunks), index_row(sample.metadata, shard, offset, length, tuple(members))


def check_sample(sample: Sample, where: str) -> None:
    """Refuses metadata that would not read back, and members that it does not describe."""
    metadata = sample.metadata
    from_json(to_json(metadata), f"{where}: sample {metadata.key!r}")
    problems = [f"member name {name!r} is unknown" for name in sample.members if not _MEMBER_PATTERN.fullmatch(name)]
    faces = {name for name in sample.members if name.startswith("face")}
    expected = {f"face{track.id}.mp4" for track in metadata.tracks}
    if faces != expected:
        problems.append(f"face members {sorted(faces)} do not fit the tracks' {sorted(expected)}")
    if ("flac" in sample.members) != metadata.audio.has_audio:
        problems.append(f"audio.has_audio is {metadata.audio.has_audio}, members are {sorted(sample.members)}")
    if metadata.status == ["OK"] and not ("flac" in sample.members and (faces or "frame.mp4" in sample.members)):
        problems.append(f"status is OK, but members {sorted(sample.members)} lack sound or picture")
    if problems:
        raise ShardError(f"{where}: sample {metadata.key!r}: {'; '.join(problems)}")


def parse_sample(content: bytes, row: IndexRow, where: str) -> Sample:
    """Returns the sample in a range of a tar, as stock webdataset parses it.

    Args:
        content: bytes [row.offset, row.offset + row.length) of the tar.
        where: path of the tar, named in every message.

    Raises:
        ShardError: not the tar entries of `row.key`, a member is missing or its crc32 differs, invalid metadata.
    """
    stated = f"{where}: sample {row.key!r}"
    if len(content) != row.length:
        raise ShardError(f"{stated}: {len(content)} of its {row.length} bytes are there; copy or rebuild this shard")
    try:
        samples = list(group_by_keys(tar_file_expander([{"url": where, "stream": io.BytesIO(content)}])))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ShardError(f"{stated}: not tar entries: {_reason(error)}; copy or rebuild this shard") from error
    if [sample["__key__"] for sample in samples] != [row.key]:
        found = ", ".join(str(sample["__key__"]) for sample in samples) or "nothing"
        raise ShardError(f"{stated}: found {found} at byte {row.offset}; copy or rebuild this shard")
    members = {name: data for name, data in samples[0].items() if not name.startswith("__")}
    _check_members(members, row, stated)
    metadata = from_json(members.pop("json"), f"{stated}: {row.key}.json")
    return Sample(metadata, members)


def _reason(error: Exception) -> str:
    """Returns webdataset's message without the stream that it adds, whose address differs from process to process."""
    return str(error.args[0]).partition(" @ ")[0] if error.args else type(error).__name__


def _check_members(members: dict[str, bytes], row: IndexRow, where: str) -> None:
    for member in row.members:
        if member.name not in members:
            raise ShardError(f"{where}: member {member.name} is missing; rebuild this shard")
        crc32 = zlib.crc32(members[member.name])
        if crc32 != member.crc32:
            raise ShardError(
                f"{where}: member {member.name} has crc32 {crc32:08x}, the index says {member.crc32:08x}; its bytes "
                "changed after it was written: copy or rebuild this shard"
            )
