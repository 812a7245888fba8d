"""Makes a shard directory of the shards that are there, after some were taken out or put in on purpose."""

from pathlib import Path
from typing import NamedTuple

from avff.data.shards import (
    ShardDirectory,
    local_directory,
    manifest_of,
    open_listed,
    read_manifest,
    read_shard_info,
    write_manifest,
)


class Relisted(NamedTuple):
    """A directory whose manifest was written anew.

    Attributes:
        added, removed: names of shards, against the manifest before.
    """

    directory: ShardDirectory
    added: list[str]
    removed: list[str]


def relist(path: str | Path) -> Relisted:
    """Writes a manifest of the shards that lie in a directory, from their indices; tars are not opened.

    How the shards were built is kept from the manifest before.

    Raises:
        ShardError: a tar without its index or of another size, or the shards together are no valid directory, such as
            a key twice; the manifest is then not touched.
    """
    path = local_directory(path)
    before = read_manifest(path)
    infos = [read_shard_info(path, tar.name) for tar in sorted(path.glob("[!.]*.tar"))]
    origin = {name: before[name] for name in ("build", "arguments", "rejects")}
    directory = open_listed(path, manifest_of(infos, **origin))
    write_manifest(path, infos, **origin)
    old, new = {values["name"] for values in before["shards"]}, {info.name for info in infos}
    return Relisted(directory, sorted(new - old), sorted(old - new))
