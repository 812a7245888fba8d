"""What runs in a job of 125 nodes with 8 GPUs each, as far as one machine can tell: the plan, each rank's places, the job."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from index_files import write_indexed_directory

from avff.config import Config, ShardSource, load_config, save_config
from avff.data.plan import Plan
from avff.data.plan_layout import layout_warnings
from avff.simulation.reading import PlanFacts, places_of_all_ranks, plan_facts
from avff.simulation.stage import scaled_config
from launch import slurm

ROOT = Path(__file__).parents[2]
RANKS, NUM_SAMPLES = 1000, 100_000


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    shards = tmp_path_factory.mktemp("thousand") / "shards"
    write_indexed_directory(shards, [1000] * (NUM_SAMPLES // 1000))
    config = load_config(ROOT / "configs/stage1_kinetics.yaml", ["engine.micro_batch_size=16"])
    config = replace(config, data=replace(config.data, train=(ShardSource(path=str(shards)),), validation=()))
    return scaled_config(config, RANKS, "weak")


@pytest.fixture(scope="module")
def facts(config) -> PlanFacts:
    return plan_facts(config, 0)


@pytest.fixture(scope="module")
def plan(facts) -> Plan:
    assert facts.plan is not None
    return facts.plan


@pytest.mark.slow
def test_a_thousand_ranks_tile_every_step_and_share_every_group_evenly(config, plan):
    places = places_of_all_ranks(config, RANKS)
    assert config.engine.global_batch_size == 16_000
    assert places.shape == (RANKS, 16)
    assert np.array_equal(np.sort(places, axis=None), np.arange(16_000))
    groups = places // config.group_size
    each = config.group_size // RANKS
    assert all(np.array_equal(np.bincount(own), np.full(16_000 // config.group_size, each)) for own in groups)
    for step in (0, 6, 11_749):  # step 6 holds the end of an epoch
        entries = plan.entries(step)
        by_rank = [[e.position for e in plan.at(step * plan.samples_per_step + own)] for own in places[::37]]
        assert [entries[place].position for place in places[::37].reshape(-1)] == [p for own in by_rank for p in own]


@pytest.mark.slow
def test_a_thousand_ranks_read_each_sample_once_per_epoch(config, plan):
    places = places_of_all_ranks(config, RANKS).reshape(-1)
    read = np.concatenate([plan.order.at(step * 16_000 + places).sample for step in range(25)])  # four whole epochs
    assert np.array_equal(np.bincount(read), np.full(NUM_SAMPLES, 4))


@pytest.mark.slow
def test_ranks_have_no_effect_on_what_a_step_holds(config, plan):
    few = replace(config, engine=replace(config.engine, micro_batch_size=2000))
    assert set(places_of_all_ranks(few, 8).reshape(-1)) == set(places_of_all_ranks(config, RANKS).reshape(-1))
    assert few.accumulation_steps(8) == config.accumulation_steps(RANKS) == 1


@pytest.mark.slow
def test_too_few_shards_for_so_many_readers_are_warned_about(config, plan):
    warnings = layout_warnings(plan, config, num_ranks=RANKS, num_workers=config.data.num_workers)
    assert "100 shards for 12000 readers (1000 ranks x 12 workers)" in warnings[0]


@pytest.mark.slow
def test_plan_facts_are_those_of_the_shards_and_the_last_step_is_found_too(facts):
    assert (facts.samples, facts.shards, facts.bytes_per_sample) == (NUM_SAMPLES, 100, 4096)
    assert [seek.step for seek in facts.seeks] == [0, 62, 11_749]


def test_a_job_of_125_nodes_asks_for_a_rank_per_gpu(tmp_path, config, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    save_config(replace(config, runs_dir=str(tmp_path / "runs")), tmp_path / "stage1.yaml")
    words = ["--nodes", "125", "--gpus-per-node", "8", "--cpus-per-task", "13", "--exclusive", "--dry-run"]
    assert slurm.main([str(tmp_path / "stage1.yaml"), *words]) == 0
    script = capsys.readouterr().out
    for line in ("--nodes=125", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=13", "--exclusive"):
        assert f"#SBATCH {line}\n" in script
    assert "# each of 1000 tasks of the job runs in" in script
    assert "--kill-on-bad-exit=1" in script


def test_a_job_whose_batch_does_not_divide_over_1000_ranks_is_refused_before_it_is_submitted(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [str(ROOT / "configs/stage1_kinetics.yaml"), "--nodes", "125", "--gpus-per-node", "8", "--dry-run"]
    assert slurm.main(words) == 2
    assert "engine.global_batch_size 512 does not divide over 1000 ranks" in capsys.readouterr().err
