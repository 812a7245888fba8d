"""A restart on other shards says what changed: real directories, changed the way people change them."""

import json
import shutil

import pytest

from avff.data.plan import build_plan
from avff.data.plan_change import describe_change
from avff.data.relist import relist
from avff.data.shards import open_directory
from avff.data.signature import plan_signature, signature_hash, validation_signature


@pytest.fixture(scope="module")
def two(make_sample, write_directory, tmp_path_factory):
    """Two directories: four clips in four shards, two clips in one."""
    folder = tmp_path_factory.mktemp("two")
    a = write_directory(folder / "a", [make_sample(f"a{i}") for i in range(4)], num_shards=4)
    b = write_directory(folder / "b", [make_sample(f"b{i}") for i in range(2)])
    return a, b


@pytest.fixture
def signature_of(tiny_config):
    """As a run would save and read it: `signature_of([a, b], weights=[1, 2], data={...}, ...)`."""

    def make(directories, weights=None, data=None, **overrides):
        weights = weights or [1.0] * len(directories)
        sources = [{"path": str(d.path), "weight": w} for d, w in zip(directories, weights, strict=True)]
        config = tiny_config(data={"train": sources, **(data or {})}, **overrides)
        return json.loads(json.dumps(plan_signature(config, directories)))

    return make


def shortened(directory, path, removed):
    """A copy of a directory without some shards, listed anew as a user does it."""
    shutil.copytree(directory.path, path)
    for info in removed:
        (path / info.name).unlink()
    return relist(path).directory


def test_nothing_changed(two, signature_of, tmp_path):
    signature = signature_of(two)
    assert describe_change(signature, signature_of(two)) == []
    moved = [open_directory(shutil.copytree(directory.path, tmp_path / directory.path.name)) for directory in two]
    assert describe_change(signature, signature_of(moved)) == []
    assert signature_hash(signature) == signature_hash(signature_of(moved))


def test_signature_survives_json_and_names_every_shard(two, tiny_config, signature_of):
    config = tiny_config(data={"train": [{"path": str(d.path)} for d in two]})
    plan = build_plan(config, two)
    assert signature_hash(signature_of(two)) == plan.hash == signature_hash(plan.signature)
    first = two[0].shards[0]
    assert plan.signature["directories"][0]["shards"][0] == {
        "name": "shard-000000.tar",
        "num_samples": 1,
        "sha256": first.sha256,
        "index_sha256": first.index_sha256,
    }


def test_removed_added_and_changed_shards(two, signature_of, make_sample, write_directory, tmp_path):
    a, b = two
    fewer = shortened(a, tmp_path / "fewer", [a.shards[1]])
    old, new = signature_of([a, b]), signature_of([fewer, b])
    about = f"1 samples, sha256 {a.shards[1].sha256[:12]}"
    assert describe_change(old, new) == [f"{fewer.path}: shard-000001.tar was removed ({about})"]
    assert describe_change(new, old) == [f"{a.path}: shard-000001.tar was added ({about})"]
    samples = [make_sample(key) for key in ("a0", "a1", "new", "a3")]
    other = write_directory(tmp_path / "changed", samples, num_shards=4)
    assert describe_change(old, signature_of([other, b])) == [
        f"{other.path}: shard-000002.tar was changed: 1 samples, sha256 {a.shards[2].sha256[:12]} then, "
        f"1 samples, sha256 {other.shards[2].sha256[:12]} now"
    ]


def test_renamed_shards_are_recognized_by_their_content(two, signature_of):
    old, new = signature_of(two), signature_of(two)
    directory = new["directories"][0]
    directory["shards"][1]["name"] = "train-01.tar"
    directory["fingerprint"] = "f" * 64
    sha256 = directory["shards"][1]["sha256"][:12]
    assert describe_change(old, new) == [
        f"{directory['path']}: shard-000001.tar was renamed to train-01.tar (1 samples, sha256 {sha256})"
    ]


def test_an_index_made_anew_and_another_order_of_shards(two, signature_of):
    old, new = signature_of(two), signature_of(two)
    new["directories"][1]["fingerprint"] = "f" * 64
    new["directories"][1]["shards"][0]["index_sha256"] = "0" * 64
    (line,) = describe_change(old, new)
    assert "the index of shard-000000.tar was changed: sha256 " in line and line.endswith("000000000000 now")
    reversed_ = signature_of(two)
    reversed_["directories"][0]["fingerprint"] = "f" * 64
    reversed_["directories"][0]["shards"].reverse()
    assert describe_change(old, reversed_) == [f"{two[0].path}: manifest.json lists the same shards in another order"]


def test_directories_come_go_and_change_places(two, signature_of):
    a, b = two
    both = signature_of([a, b])
    assert describe_change(both, signature_of([a])) == [
        f"{b.path}: the whole directory was removed, 1 shards with 2 samples"
    ]
    assert describe_change(signature_of([b]), both) == [
        f"{a.path}: the whole directory was added, 4 shards with 4 samples"
    ]
    assert describe_change(both, signature_of([b, a])) == [
        f"the directories come in another order: {a.path}, {b.path} then, {b.path}, {a.path} now"
    ]


def test_changed_settings_are_named_as_the_config_names_them(two, signature_of):
    old = signature_of(two)
    new = signature_of(two, weights=[1.0, 2.5], seed=5, data={"shuffle_window_shards": 3})
    assert describe_change(old, new) == [
        "seed: 0 then, 5 now",
        "data.shuffle_window_shards: 8 then, 3 now",
        f"{two[1].path}: weight 1.0 then, 2.5 now",
    ]


def test_every_other_hash_has_a_line(two, signature_of):
    """No refusal without a reason: whatever moves the hash is described."""
    old = signature_of(two)
    for name in old:
        if name != "directories":
            assert len(describe_change(old, {**old, name: "other"})) == 1, name
    for name in ("fingerprint", "weight"):
        new = json.loads(json.dumps(old))
        new["directories"][0][name] = "other"
        assert signature_hash(new) != signature_hash(old)
        assert len(describe_change(old, new)) == 1, name


def test_validation_shards_are_compared_too(two):
    a, b = two
    assert describe_change(validation_signature([a]), validation_signature([a])) == []
    assert describe_change(validation_signature([]), validation_signature([b])) == [
        f"{b.path}: the whole directory was added, 1 shards with 2 samples"
    ]
