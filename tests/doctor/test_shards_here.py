import shutil

import pytest

from avff.doctor import shards
from avff.doctor.check import Status
from avff.doctor.shards import decoding, init_weights


@pytest.fixture
def copied(shard_directory, tmp_path):
    return shutil.copytree(shard_directory.path, tmp_path / "shards")


def test_a_whole_directory(copied):
    answer = answer_about(copied)
    assert answer.status is Status.OK
    assert "24 samples in 3 shards" in answer.value
    assert "6 samples read" in answer.value


def test_two_copies_with_one_manifest_agree_and_others_do_not(copied, tmp_path):
    name = f"manifest of {copied}"
    before = answer_about(copied).facts[name]
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made"', '"Made"') + "\n")
    assert answer_about(copied).facts[name] != before


def _cut(folder):
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder):
    """Changes every shard, since only a few samples are read; sizes stay."""
    for path in folder.glob("*.tar"):
        content = path.read_bytes()
        path.write_bytes(content[:512] + bytes(byte ^ 255 for byte in content[512:]))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no such shard directory"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard-000001.tar is missing"),
        (_cut, "bytes instead of"),
        (_flip, "copy or rebuild this shard"),
        (lambda folder: (folder / "extra.tar").touch(), "does not list extra.tar"),
    ],
    ids=["directory", "manifest", "shard", "cut", "flipped", "unlisted"],
)
def test_what_is_missing_or_changed_is_named(copied, damage, words):
    damage(copied)
    answer = answer_about(copied)
    assert answer.status is Status.FAIL
    assert words in answer.value
    assert answer.fix


def test_a_url_says_how_to_copy_it():
    assert "aws s3 sync" in shards.shard_directory("s3://bucket/shards", 0).value


def answer_about(path):
    return shards.shard_directory(str(path), node_number=1)


def test_a_sample_is_decoded_as_training_would(copied, tiny_config):
    answer = decoding(str(copied), tiny_config().clip)
    assert answer.status is Status.OK
    assert answer.measures[0].number > 0


def test_clips_too_long_for_the_samples_are_noticed(copied, tiny_config):
    clip = tiny_config(clip={"num_frames": 8, "frames_per_second": 1.0, "hop_samples": 250}).clip
    assert "no sample of shard-000000.tar has picture and sound for 8 s" in decoding(str(copied), clip).value


def test_initial_weights_need_their_description(tmp_path):
    weights = tmp_path / "init.safetensors"
    weights.write_bytes(b"x")
    assert str(weights.with_suffix(".json")) in init_weights(str(weights)).value
    weights.with_suffix(".json").write_text("{}")
    assert init_weights(str(weights)).status is Status.OK
