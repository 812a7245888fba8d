"""Shards taken out or put in on purpose: opening refuses and names them, the tool lists what is there."""

import shutil
import sys
from pathlib import Path

import pytest
from index_files import write_indexed_directory

from avff.data.index import index_path
from avff.data.shards import open_directory
from avff.errors import ShardError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import relist_shards


@pytest.fixture
def shards(tmp_path):
    return write_indexed_directory(tmp_path / "a", [3, 4, 5])


@pytest.fixture
def run(capsys):
    """Calls the tool: `code, stdout, stderr = run(path)`."""

    def call(path):
        code = relist_shards.main([str(path)])
        return code, *capsys.readouterr()

    return call


def copy_shard(source, target, name="shard-000000.tar", new_name="extra.tar"):
    shutil.copy(source.path / name, target.path / new_name)
    shutil.copy(index_path(source.path, name), index_path(target.path, new_name))


def test_a_deleted_shard(shards, run):
    (shards.path / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"a: shard-000001.tar is missing; put .*relist_shards.py .*/a$"):
        open_directory(shards.path)
    code, text, _ = run(shards.path)
    assert code == 0
    assert text.splitlines() == ["removed shard-000001.tar", f"{shards.path}: 2 shards with 8 samples"]
    again = open_directory(shards.path)
    assert again.shards == [shards.shards[0], shards.shards[2]]
    assert again.manifest["build"] == shards.manifest["build"] and again.manifest["num_samples"] == 8


def test_an_added_shard_is_never_ignored(shards, tmp_path, run):
    other = write_indexed_directory(tmp_path / "b", [1, 1, 1, 2])
    copy_shard(other, shards, "shard-000003.tar", "shard-000003.tar")
    with pytest.raises(ShardError, match=r"a: manifest.json does not list shard-000003.tar; put"):
        open_directory(shards.path)
    assert run(shards.path)[1].splitlines()[0] == "added shard-000003.tar"
    assert [info.num_samples for info in open_directory(shards.path).shards] == [3, 4, 5, 2]


def test_a_renamed_shard_is_shown_with_its_new_name(shards, run):
    (shards.path / "shard-000001.tar").rename(shards.path / "other.tar")
    with pytest.raises(ShardError, match=r"shard-000001.tar is missing; manifest.json does not list other.tar; put"):
        open_directory(shards.path)
    code, _, problem = run(shards.path)
    assert code == 2 and "other.index.jsonl: this index is missing" in problem


def test_shards_that_do_not_fit_together_leave_the_manifest_alone(shards, tmp_path, run):
    # A shard of another directory of the same name has the same keys.
    other = write_indexed_directory(tmp_path / "elsewhere" / "a", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    copy_shard(other, shards, "shard-000010.tar", "shard-000010.tar")
    manifest = shards.path / "manifest.json"
    before = manifest.read_bytes(), manifest.stat()
    code, _, problem = run(shards.path)
    assert code == 2 and "key 'a0000010' is in shard-000002.tar and again in shard-000010.tar" in problem
    # The same file, so that no end of the process can leave it wrong: writing always makes a new one.
    assert manifest.read_bytes() == before[0]
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == (before[1].st_ino, before[1].st_mtime_ns)
