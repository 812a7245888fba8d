"""What training reads, as one node sees it: reachable, whole, and decodable here."""

import hashlib
import random
import textwrap
import time
from pathlib import Path

from avff.config import ClipConfig
from avff.data.index import ShardInfo
from avff.data.shards import (
    MANIFEST_NAME,
    ShardDirectory,
    check_files,
    local_directory,
    read_manifest,
    read_rows,
    read_sample,
)
from avff.doctor.check import Check, Measure, fail, ok, warn
from avff.doctor.needs import bytes_in_words
from avff.doctor.nodes import counted
from avff.errors import ShardError

NUM_SHARDS_READ = 3
SAMPLES_PER_SHARD = 2
LONGEST_MESSAGE = 300
"""Characters of an error that may name every shard of a directory."""
COPY_AGAIN = "copy the directory to this node again, or mount it there (python tools/inspect_shards.py DIR shows more)"


def shard_directory(path: str, node_number: int) -> Check:
    """Compares every shard with the manifest by name and size, and reads a few samples, other ones on each node."""
    try:
        folder = local_directory(path)
        manifest = read_manifest(folder)
        shards = [ShardInfo(**values) for values in manifest["shards"]]
        check_files(folder, shards)
        num_read = _read_some(folder, manifest, shards, random.Random(node_number))
    except (ShardError, OSError) as error:
        return fail(textwrap.shorten(str(error), LONGEST_MESSAGE, placeholder=" ..."), COPY_AGAIN)
    fingerprint = hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()[:12]
    return ok(
        f"{path}: {counted(manifest['num_samples'], 'sample')} in {counted(len(shards), 'shard')}, "
        f"{bytes_in_words(sum(info.bytes for info in shards))}, sizes right, {num_read} samples read",
        facts={f"manifest of {path}": fingerprint},
    )


def _read_some(folder: Path, manifest: dict, shards: list[ShardInfo], choice: random.Random) -> int:
    """Reads samples, and so compares their crc32; returns how many."""
    num_read = 0
    for info in choice.sample(shards, min(NUM_SHARDS_READ, len(shards))):
        rows = read_rows(folder, info)
        directory = ShardDirectory(folder, manifest, shards, rows)
        for row in choice.sample(rows, min(SAMPLES_PER_SHARD, len(rows))):
            read_sample(directory, row)
            num_read += 1
    return num_read


def decoding(path: str, clip: ClipConfig) -> Check:
    """Decodes the windows of one sample as training does, with the libraries of this node."""
    from avff.data.views import AVView

    folder = local_directory(path)
    manifest = read_manifest(folder)
    shards = [ShardInfo(**values) for values in manifest["shards"]]
    rows = read_rows(folder, shards[0])
    row = next((row for row in rows if row.can_hold(clip.duration_seconds)), None)
    if row is None:
        return warn(
            f"{path}: no sample of {shards[0].name} has picture and sound for {clip.duration_seconds:g} s",
            "python tools/inspect_shards.py DIR shows lengths; change clip.num_frames or build longer clips",
        )
    sample = read_sample(ShardDirectory(folder, manifest, shards, rows), row)
    before = time.perf_counter()
    clips = AVView(clip).evaluation_clips(sample)
    milliseconds = 1000 * (time.perf_counter() - before) / len(clips)
    return ok(f"{path}: sample {row.key} decodes", Measure("clip", milliseconds, "ms"))


def init_weights(path: str) -> Check:
    """Looks for the weights to start from, and what describes them."""
    files = [Path(path), Path(path).with_suffix(".json")]
    if missing := [str(file) for file in files if not file.is_file()]:
        return fail(
            f"{' and '.join(missing)} missing", "tools/adapt_weights.py makes both; put them where all nodes see them"
        )
    size = files[0].stat().st_size
    return ok(f"{path}, {bytes_in_words(size)}", facts={f"size of {path}": str(size)})
