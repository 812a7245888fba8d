"""Substituted samples and skipped updates are recorded, counted and limited."""

import json

import pytest

from avff.data.stream import Substitution
from avff.engine.ledger import Ledger
from avff.engine.update import BadBatch
from avff.errors import TrainingError


def substitution(key: str, shard: str = "shards/a.tar", position: int = 0) -> Substitution:
    return Substitution(key, shard, f"{key} is torn", "other", 0, position)


def test_budget_names_shard_and_reason(tiny_config):
    config = tiny_config(faults={"max_substituted_fraction": 0.1})
    config.run_dir.mkdir(parents=True)
    ledger = Ledger(config, {}, resume_step=0)
    ledger.substituted(5, [substitution("x", position=7), substitution("y", position=3)])  # 2 of 20: at the budget
    with pytest.raises(TrainingError, match=r"3 of 24 samples had to be replaced.*2 times, in shards/a.tar: x is torn"):
        ledger.substituted(6, [substitution("x")])
    records = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [(record["step"], record["key"]) for record in records] == [(5, "y"), (5, "x"), (6, "x")]


def test_a_single_bad_sample_at_the_start_does_not_stop_the_run(tiny_config):
    config = tiny_config()
    config.run_dir.mkdir(parents=True)
    ledger = Ledger(config, {}, resume_step=0)
    ledger.substituted(1, [substitution("x")])
    assert ledger.counters()["num_substituted"] == 1


def test_consecutive_skips_stop_the_run_and_name_keys_and_values(tiny_config):
    config = tiny_config(faults={"max_nonfinite_steps": 2})
    config.run_dir.mkdir(parents=True)
    ledger = Ledger(config, {"num_skipped": 4}, resume_step=0)
    bad = [BadBatch(1, ("k3", "k4"), {"loss": float("nan"), "contrastive": 2.0})]
    ledger.skipped(1, bad, {"model": float("nan")})
    ledger.applied()
    ledger.skipped(3, bad, {"model": float("nan")})
    with pytest.raises(TrainingError, match=r"step 4: 2 updates in a row.*rank 1: loss=nan on keys k3, k4"):
        ledger.skipped(4, bad, {"model": float("nan")})
    assert ledger.counters() == {
        "num_substituted": 0,
        "num_skipped": 7,
        "consecutive_skips": 2,
        "num_spikes": 0,
    }


def test_lines_after_the_resume_point_are_removed(tiny_config):
    config = tiny_config()
    config.run_dir.mkdir(parents=True)
    Ledger(config, {}, resume_step=0).substituted(3, [substitution("x")])
    ledger = Ledger(config, {"num_substituted": 0}, resume_step=2)
    assert ledger.path.read_text() == ""
