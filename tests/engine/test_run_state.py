"""Continuing a run: what may change, what is refused, and how small files are written."""

import socket

import pytest
import torch
from made_checkpoints import add_checkpoint

from avff.config import load_config
from avff.engine.run_state import MAY_CHANGE, open_run, read_exit, write_exit
from avff.engine.starts import STARTS
from avff.engine.train import run_stage
from avff.errors import ConfigError, TrainingError
from avff.json_lines import read_lines
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


def test_a_run_that_is_continued_keeps_its_decoder(tiny_config):
    own, auto, other = (tiny_config(data={"decoder": name}) for name in ("torchcodec", "auto", "decord"))
    open_run(own)
    assert open_run(auto) == auto  # nothing was saved yet: the choice is open
    open_run(own)
    commit_a_step(own)
    assert open_run(auto) == own and load_config(own.run_dir / "config.yaml") == own
    with pytest.raises(ConfigError, match=r"data.decoder: 'torchcodec' there, 'decord' now"):
        open_run(other)


def test_a_run_without_a_decoder_of_its_own_takes_one(tiny_config):
    auto, stated = (tiny_config(data={"decoder": name}) for name in ("auto", "torchcodec"))
    open_run(auto)
    commit_a_step(auto)
    assert open_run(auto) == auto and open_run(stated) == stated


def test_every_key_that_may_change_exists(tiny_config):
    keys = flatten(tiny_config())
    for allowed in MAY_CHANGE:
        assert any(key == allowed or (key.startswith(allowed) and allowed.endswith(".")) for key in keys), allowed


def test_the_exit_of_the_process_before_is_removed(tiny_config):
    config = tiny_config()
    open_run(config)
    write_exit(config.run_dir, reason="stopped", code=75, step=4)
    assert read_exit(config.run_dir) == {
        "reason": "stopped",
        "code": 75,
        "step": 4,
        "rank": 0,
        "host": socket.gethostname(),
    }
    open_run(config)
    assert read_exit(config.run_dir) is None


def test_the_first_failure_keeps_exit_json_and_a_clean_end_replaces_it(tmp_path):
    write_exit(tmp_path, reason="the cause", code=3, step=4, rank=1)
    write_exit(tmp_path, reason="connection closed", code=1, step=4, rank=0)
    assert read_exit(tmp_path)["reason"] == "the cause"
    assert [path.name for path in tmp_path.iterdir()] == ["exit.json"]
    write_exit(tmp_path, reason="finished", code=0, step=8)
    assert read_exit(tmp_path)["reason"] == "finished"


def test_an_exit_that_cannot_be_written_is_logged_and_does_not_hide_the_error(tmp_path, caplog):
    write_exit(tmp_path / "missing", reason="the cause", code=3, step=4)
    assert "exit.json: could not be written" in caplog.text and "the cause" in caplog.text


def crash(config, reason: str) -> None:
    open_run(config)
    write_exit(config.run_dir, reason=reason, code=1, step=0)


def test_a_loop_of_crashes_is_ended_and_says_how_to_go_on(tiny_config):
    config = tiny_config(faults={"max_failed_starts": 3})
    open_run(config)  # killed: leaves no exit.json
    crash(config, "one")
    crash(config, "two")
    for _ in range(2):  # a refused start does not count as another crash
        with pytest.raises(
            TrainingError, match=r"last 3 starts .* after step 0, .*: two; .*max_failed_starts=4 \(now 3"
        ):
            open_run(config)
    open_run(tiny_config(faults={"max_failed_starts": 4}))


def test_refusals_after_the_first_step_are_crashes(tiny_config):
    """Such as a validation clip that cannot be read, before the checkpoint of its step: the next start ends there too."""
    config = tiny_config(faults={"max_failed_starts": 2})
    for _ in range(2):
        open_run(config)
        write_exit(config.run_dir, reason="no such clip", code=2, step=7)
    with pytest.raises(TrainingError, match="no such clip"):
        open_run(config)


@pytest.mark.parametrize("code", [0, 130, 2])
def test_ends_that_are_wanted_end_the_count(tiny_config, code):
    config = tiny_config(faults={"max_failed_starts": 2})
    crash(config, "one")
    open_run(config)
    write_exit(config.run_dir, reason="another end", code=code, step=0)
    crash(config, "two")
    open_run(config)


def test_being_stopped_before_anything_is_saved_counts(tiny_config):
    """Such as a time limit that is over before the first step is: the queue would be kept busy for nothing."""
    config = tiny_config(faults={"max_failed_starts": 2})
    for _ in range(2):
        open_run(config)
        write_exit(config.run_dir, reason="stopped by time limit of 1 min on rank 0", code=75, step=0)
    with pytest.raises(TrainingError, match=r"the last 2 starts .* after step 0, .* time limit"):
        open_run(config)


def test_a_new_checkpoint_ends_the_count(tiny_config):
    config = tiny_config(faults={"max_failed_starts": 2})
    crash(config, "one")
    crash(config, "two")
    commit_a_step(config)
    open_run(config)
    lines = read_lines(config.run_dir / STARTS)
    assert [line["step"] for line in lines] == [0, 0, 1]
    assert [line["last_end"] and line["last_end"]["reason"] for line in lines] == [None, "one", "two"]


def test_starting_a_finished_run_again_leaves_its_exit(tiny_config):
    config = tiny_config()
    add_checkpoint(config.run_dir, config.optim.num_steps)
    for _ in range(2):
        assert run_stage(config, torch.device("cpu")) == 0
        end = read_exit(config.run_dir)
        assert (end["reason"], end["code"], end["step"]) == ("finished", 0, 8)
