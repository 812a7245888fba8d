"""Shard directories: plain tars that stock webdataset reads, one index per tar, one manifest.

    shards/manifest.json                 written last: what is complete, and how it was built
    shards/shard-000000.tar              <key>.json, <key>.flac, <key>.face0.mp4 ... in sorted order
    shards/shard-000000.index.jsonl      avff.data.index

Bytes are a pure function of the samples (fixed times, owners and order). A file appears under its final name
only when it is complete and on the disk.
"""

import gc
import hashlib
import json
import os
import re
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import avff
from avff.data.index import IndexRow, ShardInfo, check_groups, check_unique_keys, index_bytes, index_path, read_index
from avff.data.samples import Sample, check_sample, parse_sample, sample_bytes
from avff.errors import ReadError, ShardError
from avff.files import sync, write_durably

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
READ_AGAIN_SECONDS = 1.0
"""A file server that fails once (ESTALE, EIO) may answer after so long."""
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.tar")


class ShardDirectory(NamedTuple):
    """An opened, checked shard directory.

    Attributes:
        manifest: content of manifest.json.
        shards: in manifest order.
        rows: every sample, in shard order and stored order.
    """

    path: Path
    manifest: dict[str, Any]
    shards: list[ShardInfo]
    rows: list[IndexRow]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and content of all shards and indices; the folder may move."""
        return hashlib.sha256(json.dumps([list(info) for info in self.shards]).encode()).hexdigest()


# ------------------------------------------------------------------------------------------- writing


def write_shard(directory: Path, name: str, samples: Iterable[Sample]) -> ShardInfo:
    """Writes one tar and its index; both are on the disk when this returns.

    Args:
        name: file name such as `shard-000000.tar`.
        samples: stored in this order; consumed one at a time.

    Raises:
        ShardError: no sample, a key twice, metadata that does not validate or does not fit the members.
    """
    if not _NAME_PATTERN.fullmatch(name):
        raise ShardError(f"shard name {name!r} has to match {_NAME_PATTERN.pattern}")
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{name}.partial"
    try:
        info, rows = _write_tar(partial, name, samples)
        index = index_bytes(info, rows)
        # The index goes first: a tar under its final name always has one.
        write_durably(index_path(directory, name), index)
        os.replace(partial, directory / name)
        sync(directory)
    finally:
        partial.unlink(missing_ok=True)
    return info._replace(index_sha256=hashlib.sha256(index).hexdigest())


def _write_tar(path: Path, name: str, samples: Iterable[Sample]) -> tuple[ShardInfo, list[IndexRow]]:
    rows: list[IndexRow] = []
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for sample in samples:
            check_sample(sample, name)
            content, row = sample_bytes(sample, name, file.tell())
            rows.append(row)
            digest.update(content)
            file.write(content)
        check_unique_keys(rows, name)
        end = b"\0" * (2 * tarfile.BLOCKSIZE)
        digest.update(end)
        file.write(end)
        file.flush()
        os.fsync(file.fileno())
        return ShardInfo(name, len(rows), file.tell(), digest.hexdigest(), ""), rows


def write_manifest(
    directory: Path,
    shards: list[ShardInfo],
    *,
    build: dict[str, Any],
    arguments: dict[str, Any],
    rejects: dict[str, int],
) -> None:
    """Writes manifest.json, which makes the directory complete; arguments as for `manifest_of`."""
    manifest = manifest_of(shards, build=build, arguments=arguments, rejects=rejects)
    write_durably(directory / MANIFEST_NAME, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def manifest_of(
    shards: list[ShardInfo], *, build: dict[str, Any], arguments: dict[str, Any], rejects: dict[str, int]
) -> dict[str, Any]:
    """Returns the content of manifest.json.

    Args:
        build: `avff.config.to_dict` of the BuildConfig that made the samples.
        arguments: how the builder was called, for the record.
        rejects: rejected sources per reason.
    """
    return {
        "manifest_version": MANIFEST_VERSION,
        "builder_version": avff.__version__,
        "arguments": arguments,
        "build": build,
        "num_samples": sum(info.num_samples for info in shards),
        "rejects": rejects,
        "shards": [info._asdict() for info in sorted(shards)],
    }


# ------------------------------------------------------------------------------------------- reading


def local_directory(path: str | Path) -> Path:
    """Returns the path of a shard directory on this machine.

    Raises:
        ShardError: a URL or pipe, which exact seeking cannot use; the message has the command that copies it.
    """
    text = str(path)
    # Path() turns `s3://` into `s3:/`, so both spellings are looked for.
    match = re.match(r"(s3|gs|gcs|http|https|hf):/{1,2}(.*)", text)
    if match:
        copy = {
            "s3": f"aws s3 sync s3://{match[2]} shards/",
            "gs": f"gcloud storage rsync -r gs://{match[2]} shards/",
            "gcs": f"gcloud storage rsync -r gs://{match[2]} shards/",
        }.get(match[1], f"wget -r -np -nH {match[1]}://{match[2]}")
        raise ShardError(f"{text}: shards are read by seeking, from a mounted folder only; copy them first: {copy}")
    if text.startswith("pipe:"):
        command = text.removeprefix("pipe:").strip()
        raise ShardError(
            f"{text}: shards are read by seeking, which a pipe cannot do; copy them first: {command} > shards/NAME.tar"
        )
    return Path(path)


def open_directory(path: str | Path) -> ShardDirectory:
    """Opens a shard directory and checks it, tar contents aside.

    Raises:
        ShardError: no manifest; a shard missing, not listed, of another size or with another index; a key twice;
            a group in two splits. All problems of one kind are reported together.
    """
    path = local_directory(path)
    return open_listed(path, read_manifest(path))


def open_listed(path: Path, manifest: dict[str, Any]) -> ShardDirectory:
    """Opens a shard directory as `open_directory` does, under a manifest that need not be on the disk."""
    shards = [ShardInfo(**values) for values in manifest["shards"]]
    check_files(path, shards)
    rows: list[IndexRow] = []
    with _no_collection():
        for info in shards:
            rows += read_rows(path, info)
    check_unique_keys(rows, str(path))
    check_groups(rows, str(path))
    return ShardDirectory(path, manifest, shards, rows)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Spares the garbage collector millions of new rows, none of which can be in a cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_rows(path: Path, info: ShardInfo) -> list[IndexRow]:
    """Returns the samples of one shard.

    Raises:
        ShardError: its index is missing, torn, or not the one of the shard that the manifest lists.
    """
    stored, rows = read_index(index_path(path, info.name))
    if stored != info:
        raise ShardError(
            f"{index_path(path, info.name)}: does not belong to the shard that {MANIFEST_NAME} lists; run "
            "tools/make_shards.py again, which restores the manifest"
        )
    return rows


def read_shard_info(directory: Path, name: str) -> ShardInfo:
    """Returns what a finished shard holds, from its index and size; a builder that continues uses it.

    Raises:
        ShardError: the shard or its index is missing, torn or of another size.
    """
    info, _ = read_index(index_path(directory, name))
    if problems := _problems(directory, [info]):
        raise ShardError(
            f"{directory}: {problems[0]}; copy it again, or run tools/make_shards.py again, which rebuilds it"
        )
    return info


def read_sample(directory: ShardDirectory, row: IndexRow) -> Sample:
    """Reads one sample by seeking to its range; stock webdataset parses it.

    Raises:
        ReadError: the file system failed twice, which says nothing about the bytes.
        ShardError: a member is missing or its crc32 differs, or the metadata is invalid.
    """
    path = directory.path / row.shard
    try:
        content = _read_range(path, row)
    except OSError:
        time.sleep(READ_AGAIN_SECONDS)
        try:
            content = _read_range(path, row)
        except OSError as error:
            raise ReadError(f"{path}: sample {row.key!r}: cannot be read: {error}") from error
    return parse_sample(content, row, str(path))


def _read_range(path: Path, row: IndexRow) -> bytes:
    with path.open("rb") as file:
        file.seek(row.offset)
        return file.read(row.length)


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads manifest.json.

    Raises:
        ShardError: missing, not JSON or of another version.
    """
    file = path / MANIFEST_NAME
    if not path.is_dir():
        raise ShardError(f"{path}: no such shard directory; build one with tools/make_shards.py --output {path}")
    if not file.is_file():
        raise ShardError(
            f"{path}: has no {MANIFEST_NAME}, so it is not a finished shard directory; let tools/make_shards.py "
            f"--output {path} finish"
        )
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise ShardError(f"{file}: not valid JSON: {error}; run tools/make_shards.py again") from error
    version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
    if version != MANIFEST_VERSION:
        raise ShardError(
            f"{file}: manifest_version is {version}, this avff reads {MANIFEST_VERSION}; rebuild the shards"
        )
    return manifest


def check_files(path: Path, shards: list[ShardInfo]) -> None:
    """Compares the tars of a directory with its manifest, by name and size.

    Raises:
        ShardError: some are missing, of another size, or not listed; names them all.
    """
    problems = _problems(path, shards)
    if unlisted := sorted({tar.name for tar in path.glob("[!.]*.tar")} - {info.name for info in shards}):
        problems.append(f"{MANIFEST_NAME} does not list {', '.join(unlisted)}")
    if problems:
        raise ShardError(
            f"{path}: {'; '.join(problems)}; put the shards back as they were (copy them again, rename them back), or run "
            f"tools/make_shards.py with the arguments in {MANIFEST_NAME}, which rebuilds what is missing. To read what is "
            f"there now, on purpose: python tools/relist_shards.py {path}"
        )


def _problems(path: Path, shards: list[ShardInfo]) -> list[str]:
    problems = []
    for info in shards:
        file = path / info.name
        if not file.is_file():
            problems.append(f"{info.name} is missing")
        elif file.stat().st_size != info.bytes:
            problems.append(f"{info.name} has {file.stat().st_size} bytes instead of {info.bytes}")
    return problems
