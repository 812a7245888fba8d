"""Shard directories: bytes, index, manifest, and every way in which they can be wrong."""

import json
import shutil

import pytest
import webdataset

from avff.data import shards
from avff.data.index import index_path
from avff.data.shards import open_directory, read_sample, read_shard_info, write_manifest, write_shard
from avff.errors import ReadError, ShardError


@pytest.fixture
def copied(shard_directory, tmp_path):
    """A copy of the shared directory that a test may damage."""
    return shutil.copytree(shard_directory.path, tmp_path / "copied")


def flip_byte(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def test_samples_read_back_as_written(tmp_path, make_sample, write_directory):
    samples = [
        make_sample("plain", extra={"note": "é"}),
        make_sample("two_faces", tracks=[(0, 10), (4, 12)], speakers=[False, True]),
        make_sample("frame", tracks=[]),
        make_sample("silent", status=["NO_AUDIO"]),
    ]
    directory = write_directory(tmp_path / "shards", samples, num_shards=2)
    assert [row.key for row in directory.rows] == ["plain", "two_faces", "frame", "silent"]
    assert [read_sample(directory, row) for row in directory.rows] == samples
    # Any order of reading gives the same: seeking does not depend on what was read before.
    assert read_sample(directory, directory.rows[2]) == samples[2]


def test_stock_webdataset_reads_the_tars(shard_directory):
    urls = [str(shard_directory.path / info.name) for info in shard_directory.shards]
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert list(found) == [row.key for row in shard_directory.rows]
    for row in shard_directory.rows:
        members = read_sample(shard_directory, row).members
        assert {name: found[row.key][name] for name in members} == members


def test_bytes_are_a_function_of_the_samples(tmp_path, make_sample):
    samples = [make_sample("a"), make_sample("b", is_fake=1)]
    first = write_shard(tmp_path / "one", "shard-000000.tar", samples)
    second = write_shard(tmp_path / "two", "shard-000000.tar", iter(samples))
    assert first == second
    assert (tmp_path / "one" / first.name).read_bytes() == (tmp_path / "two" / first.name).read_bytes()
    assert read_shard_info(tmp_path / "one", first.name) == first


def test_a_failed_write_leaves_nothing(tmp_path, make_sample):
    def samples():
        yield make_sample("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, "shard-000000.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_index_columns(tmp_path, make_sample, write_directory):
    sample = make_sample(
        "x",
        is_fake=1,
        video_is_fake=1,
        audio_is_fake=0,
        group_ids=["p", "q"],
        methods=["swap"],
        tracks=[(0, 5), (4, 12)],
    )
    row = write_directory(tmp_path / "shards", [sample]).rows[0]
    assert (row.is_fake, row.video_is_fake, row.audio_is_fake, row.category) == (1, 1, 0, "FVRA")
    assert (row.group_ids, row.methods, row.status, row.num_tracks) == (("p", "q"), ("swap",), ("OK",), 2)
    assert row.duration_seconds == pytest.approx(3.2)
    assert row.usable_seconds == pytest.approx(12 / 5)  # the longer track


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._replace(members={**s.members, "face7.mp4": b"x"}), r"face members .*face7.* do not fit"),
        (lambda s: s._replace(members={**s.members, "x.txt": b"x"}), r"member name 'x.txt' is unknown"),
        (lambda s: s._replace(members={"face0.mp4": s.members["face0.mp4"]}), r"has_audio is True.*lack sound"),
    ],
)
def test_members_have_to_fit_the_metadata(tmp_path, make_sample, change, message):
    with pytest.raises(ShardError, match=message):
        write_shard(tmp_path, "shard-000000.tar", [change(make_sample("a"))])


def test_writing_refuses_what_could_not_be_told_apart(tmp_path, make_sample):
    with pytest.raises(ShardError, match=r"key 'a' is in .* and again in"):
        write_shard(tmp_path, "shard-000000.tar", [make_sample("a"), make_sample("a")])
    with pytest.raises(ShardError, match="holds no sample"):
        write_shard(tmp_path, "shard-000000.tar", [])
    with pytest.raises(ShardError, match=r"shard name 'v1.5.tar' has to match"):
        write_shard(tmp_path, "v1.5.tar", [make_sample("a")])


def test_missing_and_torn_files_are_one_error(copied):
    (copied / "shard-000000.tar").unlink()
    with (copied / "shard-000002.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(
        ShardError, match=r"shard-000000.tar is missing; shard-000002.tar has \d+ bytes instead of \d+; put"
    ):
        open_directory(copied)


def test_unfinished_and_foreign_directories(copied, tmp_path):
    with pytest.raises(ShardError, match="no such shard directory; build one with"):
        open_directory(tmp_path / "nowhere")
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "manifest_version": 99}))
    with pytest.raises(ShardError, match="manifest_version is 99, this avff reads 1"):
        open_directory(copied)
    (copied / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"has no manifest.json.*let tools/make_shards.py"):
        open_directory(copied)


def test_index_of_another_shard_is_refused(copied):
    index = index_path(copied, "shard-000001.tar")
    index.write_bytes(index_path(copied, "shard-000000.tar").read_bytes())
    with pytest.raises(ShardError, match=r"does not belong to the shard that manifest.json lists"):
        open_directory(copied)
    index.write_text('{"name": "shard-000001.tar"}\n')
    with pytest.raises(ShardError, match="not an index that this avff reads"):
        open_directory(copied)
    index.unlink()
    with pytest.raises(ShardError, match="index is missing"):
        open_directory(copied)


def test_key_twice_in_a_directory(tmp_path, make_sample):
    infos = [write_shard(tmp_path, f"shard-{i:06d}.tar", [make_sample("a")]) for i in range(2)]
    write_manifest(tmp_path, infos, build={}, arguments={}, rejects={})
    with pytest.raises(ShardError, match=r"key 'a' is in shard-000000.tar and again in shard-000001.tar"):
        open_directory(tmp_path)


def test_group_in_two_splits(tmp_path, make_sample, write_directory):
    samples = [
        make_sample("a", split="train", group_ids=["p", "shared"]),
        make_sample("b", split="test", group_ids=["shared"]),
    ]
    with pytest.raises(ShardError, match="1 groups are in more than one split, such as 'shared' in 'test' and 'train'"):
        write_directory(tmp_path, samples)


def test_flipped_bits_and_truncation_are_found_on_reading(copied, monkeypatch):
    monkeypatch.setattr(shards, "READ_AGAIN_SECONDS", 0)
    directory = open_directory(copied)
    row, other = directory.rows[0], directory.rows[1]
    sound = next(member for member in row.members if member.name == "flac")
    flip_byte(copied / row.shard, sound.offset + sound.length // 2)
    with pytest.raises(ShardError, match=rf"'{row.key}': member flac has crc32 \w+, the index says {sound.crc32:08x}"):
        read_sample(directory, row)
    flip_byte(copied / other.shard, other.offset + 3)  # a member's name in a tar header
    with pytest.raises(ShardError, match=rf"sample '{other.key}': (not tar entries|found|member \S+ is missing)"):
        read_sample(directory, other)
    with (copied / row.shard).open("r+b") as file:
        file.truncate(row.offset + 1000)
    with pytest.raises(ShardError, match=r"copy or rebuild this shard|is missing"):
        read_sample(directory, row)
    (copied / row.shard).unlink()
    with pytest.raises(ReadError, match=r"cannot be read: .*No such file"):
        read_sample(directory, row)


def test_a_file_system_that_fails_once_is_asked_again(copied, monkeypatch):
    directory = open_directory(copied)
    row = directory.rows[0]
    expected = read_sample(directory, row)
    (copied / row.shard).rename(copied / "away")
    monkeypatch.setattr(shards.time, "sleep", lambda _: (copied / "away").rename(copied / row.shard))
    assert read_sample(directory, row) == expected


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("s3://bucket/shards", r"aws s3 sync s3://bucket/shards shards/"),
        ("gs://bucket/shards", r"gcloud storage rsync -r gs://bucket/shards shards/"),
        ("https://host/shards", r"wget -r -np -nH https://host/shards"),
        ("pipe:cat /data/a.tar", r"cat /data/a.tar > shards/NAME.tar"),
    ],
)
def test_remote_paths_are_refused_with_the_copy_command(path, command):
    with pytest.raises(ShardError, match=command):
        open_directory(path)
