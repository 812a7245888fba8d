"""The plan over real directories: filters, held-out people, mixtures, weights, hash, substitutes."""

import itertools
import shutil
from collections import Counter

import numpy as np
import pytest

from avff.data.plan import build_plan
from avff.data.selection import check_unseen, evaluation_samples, open_directories
from avff.data.shards import open_directory
from avff.errors import ConfigError, ShardError


@pytest.fixture
def plan_of(tiny_config):
    """Builds a plan over opened directories: `plan_of([a, b], weights=[1, 2], stage=..., data={...}, ...)`."""

    def build(train, *, validation=(), weights=None, stage="pretrain", data=None, **overrides):
        sources = [
            {"path": str(d.path), "weight": w} for d, w in zip(train, weights or [1.0] * len(train), strict=True)
        ]
        config = tiny_config(stage=stage, data={"train": sources, **(data or {})}, **overrides)
        return build_plan(config, train, validation)

    return build


@pytest.fixture(scope="module")
def small(make_sample, write_directory, tmp_path_factory):
    """Six clips: real, fake in one modality each, unknown, without face, too short, another rate of labels."""
    samples = [
        make_sample("real"),
        make_sample("fake", is_fake=1),
        make_sample("half", is_fake=None, video_is_fake=1),
        make_sample("unknown", is_fake=None),
        make_sample("faceless", status=["NO_FACE"]),
        make_sample("short", num_frames=7),
        make_sample("pieces", tracks=[(0, 7), (8, 7)]),
    ]
    return write_directory(tmp_path_factory.mktemp("small") / "small", samples)


def keys(plan, num_steps=20):
    return [entry.sample.row.key for step in range(num_steps) for entry in plan.entries(step)]


@pytest.mark.parametrize(
    ("stage", "labels", "expected"),
    [
        ("pretrain", "real", {"real"}),
        ("pretrain", "real_or_unknown", {"real", "unknown"}),
        ("finetune", "known", {"real", "fake", "half"}),
        ("finetune", "any", {"real", "fake", "half", "unknown"}),
    ],
)
def test_only_wanted_clips_are_planned(plan_of, small, stage, labels, expected):
    plan = plan_of([small], stage=stage, data={"labels": labels})
    assert set(keys(plan)) == expected
    assert plan.dropped["status"] == 1 and plan.dropped["length"] == 2


@pytest.mark.parametrize("labels", ["known", "any"])
def test_pretraining_on_fakes_cannot_be_configured(plan_of, small, labels):
    with pytest.raises(ConfigError, match=f"data.labels is '{labels}', but stage 'pretrain' trains on 'real'"):
        plan_of([small], data={"labels": labels})


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("train_split", ["train", ""])
def test_no_test_sample_reaches_training(plan_of, shard_directory, stage, train_split):
    plan = plan_of([shard_directory], stage=stage, data={"train_split": train_split})
    splits = {entry.sample.row.split for step in range(30) for entry in plan.entries(step)}
    assert splits == ({"train"} if train_split else {"train", "val"})
    if stage == "pretrain":
        assert {entry.sample.row.category for step in range(30) for entry in plan.entries(step)} == {"RVRA"}


def test_training_on_the_test_split_is_refused(plan_of, shard_directory):
    with pytest.raises(ConfigError, match="people of a test split are never trained on"):
        plan_of([shard_directory], data={"train_split": "test"})


def test_choosing_checkpoints_on_the_test_split_is_refused(plan_of, shard_directory):
    with pytest.raises(
        ConfigError, match="choose checkpoint and threshold on the people that the result is measured on"
    ):
        plan_of([shard_directory], data={"validation_split": "test"})


@pytest.mark.parametrize("held_out_split", ["val", "test"])
@pytest.mark.parametrize("as_validation", [False, True])
def test_a_person_held_out_in_another_directory(
    tmp_path, plan_of, make_sample, write_directory, held_out_split, as_validation
):
    train = write_directory(tmp_path / "a", [make_sample("x", group_ids=["p1", "p2"]), make_sample("z")])
    other = write_directory(
        tmp_path / "b", [make_sample("y", split=held_out_split, group_ids=["p2"]), make_sample("w")]
    )
    directories = {"train": [train]} if as_validation else {"train": [train, other]}
    with pytest.raises(
        ShardError, match=rf"1 groups are held out and trained on: 'p2' is in split '{held_out_split}' of .*/b"
    ):
        plan_of(**directories, validation=[other] if as_validation else [])


def test_nothing_left_says_why(plan_of, small, tiny_config):
    with pytest.raises(ShardError, match=r"none of 7 samples is left.*7 by split.*data.train_split is 'val'"):
        plan_of([small], data={"train_split": "val"})
    with pytest.raises(ConfigError, match=r"data.train lists no shard directory"):
        build_plan(tiny_config(), [])


def test_stored_rate_below_the_clips_is_refused(plan_of, small):
    with pytest.raises(
        ConfigError, match=r"stored at 5 frames per second, clip.frames_per_second is 10; lower it to 5"
    ):
        plan_of([small], clip={"frames_per_second": 10.0, "hop_samples": 50})


def test_epoch_smaller_than_the_batch(plan_of, shard_directory):
    plan = plan_of([shard_directory], engine={"global_batch_size": 12, "micro_batch_size": 12})
    assert plan.num_samples == 4
    first = plan.entries(0)
    assert [entry.epoch for entry in first] == [0] * 4 + [1] * 4 + [2] * 4
    assert Counter(entry.sample.row.key for entry in first) == dict.fromkeys(
        ["train00", "train04", "train08", "train12"], 3
    )
    assert len({plan.clip_seeds(entry)[0] for entry in first}) == 12


def test_remainder_opens_the_next_epoch(plan_of, shard_directory):
    plan = plan_of([shard_directory], stage="finetune", engine={"global_batch_size": 4, "micro_batch_size": 4})
    assert plan.num_samples == 14
    line = [entry for step in range(7) for entry in plan.entries(step)]
    assert [entry.position for entry in line] == list(range(28))
    for epoch in (0, 1):
        in_epoch = [entry.sample.row.key for entry in line if entry.epoch == epoch]
        assert len(in_epoch) == len(set(in_epoch)) == 14


def test_directories_mix_by_weight(tmp_path, plan_of, make_sample, write_directory):
    a = write_directory(tmp_path / "a", [make_sample(f"a{i}") for i in range(4)])
    b = write_directory(tmp_path / "b", [make_sample(f"b{i}") for i in range(6)], num_shards=2)
    plan = plan_of([a, b], weights=[2.0, 0.5])
    assert plan.num_samples == 11
    for epoch in range(4):
        entries = [e for e in plan.at(_positions(11 * epoch, 11))]
        times = Counter(entry.sample.row.key for entry in entries)
        assert all(times[f"a{i}"] == 2 for i in range(4))
        assert sum(times[f"b{i}"] for i in range(6)) == 3 and max(times[f"b{i}"] for i in range(6)) == 1
        assert len({plan.clip_seeds(entry)[0] for entry in entries}) == 11
    # Weight 0 leaves a directory out.
    assert {key[0] for key in keys(plan_of([a, b], weights=[1.0, 0.0]))} == {"a"}


def test_balancing_by_a_column(plan_of, shard_directory):
    data = {"balance_column": "category", "column_weights": {"RVRA": 3.0}}
    plan = plan_of([shard_directory], stage="finetune", data=data)
    drawn = Counter(entry.sample.row.category for entry in plan.at(_positions(0, 140 * plan.num_samples)))
    total = sum(drawn.values())
    assert {name: round(count / total, 2) for name, count in drawn.items()} == pytest.approx(
        {"RVRA": 0.5, "FVFA": 1 / 6, "RVFA": 1 / 6, "FVRA": 1 / 6}, abs=0.011
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"balance_column": "colour"}, "data.balance_column 'colour' is none of shard, source_key"),
        ({"column_weights": {"RVRA": 1.0}}, "data.column_weights needs data.balance_column"),
        ({"balance_column": "category", "column_weights": {"RVRR": 1.0}}, "names RVRR; category .* is RVRA"),
        (
            {"balance_column": "category", "column_weights": {"RVRA": -1.0}},
            "column_weights.RVRA is -1.0; it has to be 0",
        ),
        ({"shuffle_window_shards": 0}, "data.shuffle_window_shards is 0"),
    ],
)
def test_wrong_weights_are_named(plan_of, shard_directory, data, message):
    with pytest.raises(ConfigError, match=message):
        plan_of([shard_directory], data=data)


def test_hash_follows_what_decides_the_order(tmp_path, plan_of, make_sample, write_directory, shard_directory):
    base = plan_of([shard_directory])
    same = [plan_of([shard_directory], data={"num_workers": 3}), plan_of([shard_directory], optim={"num_steps": 99})]
    other = [
        plan_of([shard_directory], data={"labels": "real_or_unknown"}),
        plan_of([shard_directory], data={"balance_column": "category"}),
        plan_of([shard_directory], data={"shuffle_window_shards": 1}),
        plan_of([shard_directory], data={"num_runs": 2}),
        plan_of([shard_directory], engine={"global_batch_size": 8}),
        plan_of([shard_directory], weights=[2.0]),
        plan_of([shard_directory], seed=1),
        plan_of([write_directory(tmp_path / "shards", [make_sample("a")])]),
    ]
    assert {plan.hash for plan in same} == {base.hash}
    hashes = [base.hash, *(plan.hash for plan in other)]
    assert len(set(hashes)) == len(hashes)


def test_moving_a_directory_keeps_the_plan(tmp_path, plan_of, make_sample, write_directory):
    samples = [make_sample(f"k{i}") for i in range(5)]
    first = plan_of([write_directory(tmp_path / "here", samples)])
    second = plan_of([write_directory(tmp_path / "there", samples)])
    assert first.hash == second.hash and keys(first) == keys(second)


def test_substitutes_are_alike_and_a_function_of_the_position(plan_of, shard_directory):
    plan, again = (plan_of([shard_directory], stage="finetune") for _ in range(2))
    plan.entries(5)  # what was read before has no influence
    for entry in itertools.chain(again.entries(0), again.entries(3)):
        substitutes = list(again.substitutes(entry))
        assert 1 <= len(substitutes) <= 8
        assert {s.sample.row.category for s in substitutes} == {entry.sample.row.category}
        assert entry.sample.row.key not in {s.sample.row.key for s in substitutes}
        assert [s.sample.row.key for s in plan.substitutes(entry)] == [s.sample.row.key for s in substitutes]
        seeds = {again.clip_seeds(s)[0] for s in (entry, *substitutes)}
        assert len(seeds) == len(substitutes) + 1


def test_evaluation_samples(shard_directory, tiny_config):
    config = tiny_config(data={"validation": [{"path": str(shard_directory.path)}]})
    directories = open_directories(config.data.validation)
    every = evaluation_samples(directories, split="val")
    assert [sample.row.key for sample in every] == [f"val{i:02d}" for i in range(5)]
    some = evaluation_samples(directories, split="val", limit=3, seed=1)
    assert len(some) == 3 and some == evaluation_samples(directories, split="val", limit=3, seed=1)
    assert {s.row.category for s in evaluation_samples(directories, split="", labels="real")} == {"RVRA"}


def _positions(start, count):
    return np.arange(start, start + count)


def test_validating_on_what_is_trained_on_is_refused(shard_directory, make_sample, write_directory, tmp_path):
    train = evaluation_samples([shard_directory], split="train")
    again = open_directory(shutil.copytree(shard_directory.path, tmp_path / "copy"))
    check_unseen(evaluation_samples([again], split="val"), train)
    with pytest.raises(
        ShardError, match=r"14 of 14 samples to train on are validated on too.*'train00' \(split 'train'\)"
    ):
        check_unseen(evaluation_samples([again], split=""), train)
    person = write_directory(tmp_path / "other", [make_sample("other", split="val", group_ids=["person_train05"])])
    with pytest.raises(ShardError, match=r"1 of 14 .*'train05'"):
        check_unseen(evaluation_samples([person], split="val"), train)
