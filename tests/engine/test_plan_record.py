"""A run goes on with the shards that it was started with, moved or not, and with others only when told so."""

import shutil

import pytest

from avff.engine.decisions import Decisions
from avff.engine.plan_record import check_data
from avff.engine.run_data import RunData
from avff.errors import CheckpointError


@pytest.fixture
def restart(tiny_config, tmp_path):
    """Opens the data as a start does; returns the state that a checkpoint of step 3 would hold."""

    def run(train, validation, *, state=None, accept_plan=""):
        data = {"train": [{"path": str(train)}], "validation": [{"path": str(validation)}], "accept_plan": accept_plan}
        config = tiny_config(data=data)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        opened = RunData(config)
        decisions = Decisions(config.run_dir, samples_per_step=4)
        check_data(config, opened.signatures, state or {}, decisions)
        return {"step": 3, "data_hash": opened.hash}

    return run


@pytest.fixture
def shards(make_sample, write_directory, tmp_path):
    samples = [make_sample(f"clip{i}") for i in range(6)]
    held_out = [make_sample("held_out", split="val")]
    return write_directory(tmp_path / "train", samples, 3).path, write_directory(tmp_path / "val", held_out).path


def test_moved_shards_are_the_same_data(restart, shards, tmp_path):
    train, validation = shards
    state = restart(train, validation)
    restart(shutil.move(train, tmp_path / "moved"), validation, state=state)


def test_changed_shards_are_refused_by_name_and_accepted_by_hash(
    restart, shards, make_sample, write_directory, tmp_path
):
    train, validation = shards
    state = restart(train, validation)
    other = write_directory(tmp_path / "other", [make_sample(f"clip{i}") for i in range(8)], 4).path
    with pytest.raises(CheckpointError, match="would continue at step 3") as refusal:
        restart(other, validation, state=state)
    message = str(refusal.value)
    assert "train: " in message and "shard-000003.tar was added (2 samples" in message
    token = message.rpartition("data.accept_plan=")[2]
    with pytest.raises(CheckpointError, match="would continue"):
        restart(other, validation, state=state, accept_plan="0" * 12)
    with pytest.raises(CheckpointError, match="would continue"):
        restart(other, validation, state=state, accept_plan=token[:4])
    restart(other, validation, state=state, accept_plan=token)
    # Accepted once, it is what later starts expect, from the old checkpoint too: the former shards are the change now.
    restart(other, validation, state=state)
    with pytest.raises(CheckpointError, match=r"shard-000003.tar was removed"):
        restart(train, validation, state=state)


def test_other_validation_clips_are_refused_too(restart, shards, make_sample, write_directory, tmp_path):
    train, validation = shards
    state = restart(train, validation)
    other = write_directory(tmp_path / "other", [make_sample("someone_else", split="val")]).path
    with pytest.raises(CheckpointError, match=r"validation: .*other: the whole directory was added"):
        restart(train, other, state=state)


def test_a_start_without_a_checkpoint_takes_any_data(restart, shards, make_sample, write_directory, tmp_path):
    train, validation = shards
    restart(train, validation)
    restart(write_directory(tmp_path / "other", [make_sample(f"new{i}") for i in range(4)]).path, validation)
