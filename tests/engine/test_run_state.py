"""Continuing a run: what may change, what is refused, and how small files are written."""

import dataclasses
import json

import pytest
import torch

from avff.config import load_config
from avff.engine.run_data import RunData
from avff.engine.run_state import MAY_CHANGE, open_run, write_exit
from avff.engine.train import _check_plan, run_stage
from avff.errors import CheckpointError, ConfigError
from avff.run_folder import COMMIT, checkpoint_dir
from avff.strict_yaml import flatten


def test_resources_and_logging_may_change(tiny_config):
    open_run(tiny_config())
    changed = tiny_config(engine={"micro_batch_size": 1, "zero_stage": 3}, logging={"log_every_steps": 7})
    open_run(changed)
    assert load_config(changed.run_dir / "config.yaml") == changed


def commit_a_step(config):
    step_dir = checkpoint_dir(config.run_dir, 1)
    step_dir.mkdir(parents=True)
    (step_dir / COMMIT).touch()


def test_a_start_that_saved_nothing_does_not_hold_its_name(tiny_config):
    open_run(tiny_config(data={"train": [{"path": "mistyped"}]}))
    open_run(tiny_config(seed=5))
    assert load_config(tiny_config().run_dir / "config.yaml") == tiny_config(seed=5)


def test_anything_else_is_refused_with_both_values(tiny_config):
    open_run(tiny_config())
    commit_a_step(tiny_config())
    changed = tiny_config(optim={"num_steps": 9, "warmup_steps": 2}, seed=5)
    with pytest.raises(ConfigError) as caught:
        open_run(changed)
    assert "optim.num_steps: 8 there, 9 now" in str(caught.value)
    assert "seed: 0 there, 5 now" in str(caught.value)
    assert load_config(changed.run_dir / "config.yaml") == tiny_config()


def test_every_key_that_may_change_exists(tiny_config):
    keys = flatten(tiny_config())
    for allowed in MAY_CHANGE:
        assert any(key == allowed or (key.startswith(allowed) and allowed.endswith(".")) for key in keys), allowed


def test_changed_training_data_is_refused(tiny_config, shard_directory, make_sample, write_directory, tmp_path):
    config = tiny_config(data={"train": [{"path": str(shard_directory.path)}]})
    state = {"step": 3, "plan_hash": RunData(config).plan.hash}
    _check_plan(config, RunData(config), state)
    other = write_directory(tmp_path / "other", [make_sample("one"), make_sample("two")])
    moved = dataclasses.replace(config.data, train=(dataclasses.replace(config.data.train[0], path=str(other.path)),))
    with pytest.raises(CheckpointError, match="the training data changed since step 3"):
        _check_plan(config, RunData(dataclasses.replace(config, data=moved)), state)


def test_the_exit_of_the_process_before_is_removed(tiny_config):
    config = tiny_config()
    open_run(config)
    write_exit(config.run_dir, reason="stopped", code=75, step=4)
    assert json.loads((config.run_dir / "exit.json").read_text()) == {"reason": "stopped", "code": 75, "step": 4}
    open_run(config)
    assert not (config.run_dir / "exit.json").exists()


def test_starting_a_finished_run_again_leaves_its_exit(tiny_config):
    config = tiny_config()
    last = checkpoint_dir(config.run_dir, config.optim.num_steps)
    last.mkdir(parents=True)
    (last / COMMIT).touch()
    for _ in range(2):
        assert run_stage(config, torch.device("cpu")) == 0
        assert json.loads((config.run_dir / "exit.json").read_text()) == {"reason": "finished", "code": 0, "step": 8}
