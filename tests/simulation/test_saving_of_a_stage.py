"""What a stage's checkpoints take on many GPUs."""

from dataclasses import replace
from pathlib import Path

import pytest

from avff.config import load_config
from avff.simulation.cluster import load_cluster
from avff.simulation.costs import Costs
from avff.simulation.parameters import trainable_sizes
from avff.simulation.stage import save_seconds, simulate

ROOT = Path(__file__).parents[2]


def test_what_one_rank_was_seen_to_write_is_not_what_1000_write_to_a_storage_that_they_share():
    config = load_config(ROOT / "configs/stage1_kinetics.yaml")
    cluster = load_cluster(ROOT / "configs/clusters/h200.yaml")
    trained, costs = trainable_sizes(config), Costs(save_gb_per_second=0.5, least_writing_seconds=0.0)
    state_gb = 16 * sum(sizes.total for sizes in trained) / 1e9
    for num_gpus, gb_per_second in ((1, 0.5), (8, 8 * 0.5), (1000, cluster.storage_write_gb_per_second)):
        blocked, total, _ = save_seconds(config, trained, cluster, costs, num_gpus)
        assert total - blocked == pytest.approx(state_gb / gb_per_second)


def test_a_run_shorter_than_its_interval_loses_no_more_than_itself():
    config = load_config(ROOT / "configs/stage1_kinetics.yaml", ["optim.num_steps=50", "optim.warmup_steps=5"])
    cluster = replace(load_cluster(ROOT / "configs/clusters/h200.yaml"), failures_per_gpu_hour=0.01)
    trained = trainable_sizes(config)

    def as_configured(every_steps: int) -> float:
        engine = replace(config.engine, checkpoint_every_steps=every_steps)
        return simulate(replace(config, engine=engine), trained, cluster, Costs(), 64, "weak")["goodput_as_configured"]

    # 64 GPUs make the 50 steps of 8 in 7.
    assert as_configured(6) != as_configured(7) == as_configured(10_000)


def test_a_save_costs_something_however_many_ranks_share_it():
    config = load_config(ROOT / "configs/stage1_kinetics.yaml")
    cluster = load_cluster(ROOT / "configs/clusters/h200.yaml")
    trained = trainable_sizes(config)
    blocked, total, _ = save_seconds(config, trained, cluster, Costs(), 1)
    assert (blocked, total) > (0.04, 1.04)  # 3.3 GB of one rank are what counts
    blocked, total, _ = save_seconds(config, trained, cluster, Costs(), 1000)
    assert (blocked, total) == (0.04, 1.04)
    row = simulate(config, trained, cluster, Costs(), 1000, "weak")
    assert row["save_every_steps"] == row["steps"]  # of 39 s, and not each 8 seconds


def test_saving_up_to_so_rarely_matters_less_than_a_thousandth():
    config = load_config(ROOT / "configs/stage1_kinetics.yaml", ["optim.num_steps=1000000"])
    cluster = load_cluster(ROOT / "configs/clusters/h200.yaml")
    trained = trainable_sizes(config)

    def row(every_steps: int) -> dict:
        engine = replace(config.engine, checkpoint_every_steps=every_steps)
        return simulate(replace(config, engine=engine), trained, cluster, Costs(), 512, "weak")

    best = row(500)
    at_most = best["save_every_steps_at_most"]
    assert best["save_every_steps"] < at_most < best["steps"]
    assert row(at_most)["goodput_as_configured"] >= best["goodput"] - 0.001
    assert row(at_most + 1)["goodput_as_configured"] < best["goodput"] - 0.001
