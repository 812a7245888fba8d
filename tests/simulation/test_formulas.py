"""The arithmetic of avff.simulation against counting, enumerating, and simulating at random."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avff.config import Config, load_config
from avff.errors import ConfigError
from avff.objectives.contrastive import contrastive_loss
from avff.simulation.cluster import Links, load_cluster
from avff.simulation.contrast import contrast_pairs
from avff.simulation.costs import Costs
from avff.simulation.memory import memory_by_stage, rank_memory
from avff.simulation.parameters import trainable_sizes
from avff.simulation.saving import best_interval, goodput
from avff.simulation.stage import scaled_config, simulate
from avff.simulation.timing import contrast_seconds, exposed_seconds, step_time
from avff.simulation.traffic import Collective, buckets, ring_share, update_traffic

ROOT = Path(__file__).parents[2]
CLUSTERS = sorted((ROOT / "configs/clusters").glob("*.yaml"))


@pytest.fixture
def config() -> Config:
    return load_config(ROOT / "configs/stage1_kinetics.yaml")


def staged(config: Config, zero_stage: int, **engine) -> Config:
    return replace(config, engine=replace(config.engine, zero_stage=zero_stage, **engine))


def ring_bytes(num_ranks: int, elements: int) -> int:
    """Sends a ring all-reduce's pieces one by one and counts what rank 0 sends, in elements."""
    held = [[{rank} for _ in range(num_ranks)] for rank in range(num_ranks)]
    sent, piece = 0, elements // num_ranks
    for step in range(2 * (num_ranks - 1)):
        moving = [(rank, (rank - step) % num_ranks) for rank in range(num_ranks)]
        copies = {rank: set(held[rank][place]) for rank, place in moving}
        for rank, place in moving:
            held[(rank + 1) % num_ranks][place] |= copies[rank]
        sent += piece
    assert all(piece == set(range(num_ranks)) for own in held for piece in own)
    return sent


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_a_ring_sends_what_the_formula_says(num_ranks):
    assert ring_bytes(num_ranks, 840) == pytest.approx(840 * ring_share("all_reduce", num_ranks))
    assert ring_share("all_gather", num_ranks) + ring_share("reduce_scatter", num_ranks) == ring_share(
        "all_reduce", num_ranks
    )


def test_buckets_are_filled_in_order_and_never_split_a_parameter():
    assert buckets([4, 4, 4, 9, 1, 1], limit=8) == [8, 4, 9, 2]
    assert buckets([], limit=8) == []


def test_what_each_zero_stage_sends_of_gradients_and_weights(config):
    config = replace(staged(config, 0, micro_batch_size=32), pretrain=replace(config.pretrain, adversarial_weight=0.0))
    (sizes,) = trainable_sizes(config)
    model = 4 * sizes.total

    def sent(stage: int, what: str) -> float:
        return sum(c.sent_bytes(8) for c in update_traffic(staged(config, stage), [sizes], 8) if c.what == what)

    once = 7 / 8 * model
    assert config.accumulation_steps(8) == 2
    assert sent(0, "gradients") == pytest.approx(2 * once)
    assert sent(1, "gradients") == pytest.approx(2 * once)
    assert sent(2, "gradients") == pytest.approx(2 * 2 * once)  # in each of two micro batches
    assert sent(3, "gradients") == pytest.approx(2 * once, rel=1e-3)  # half an all-reduce, in each micro batch
    assert sent(0, "weights") == 0
    assert sent(1, "weights") == pytest.approx(once, rel=1e-3)
    assert sent(3, "weights") == pytest.approx(2 * once, rel=1e-2)


@pytest.mark.parametrize("level", ["slice", "clip"])
def test_contrast_is_as_much_work_as_torch_counts(config, level):
    pretrain = replace(config.pretrain, contrastive_group_size=2, contrastive_level=level)
    config = staged(replace(config, pretrain=pretrain), 0, micro_batch_size=4, global_batch_size=8)
    slices, width = config.clip.num_slices if level == "slice" else 1, config.model.encoder.width
    video, audio = (torch.randn(4, slices, width, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counted:
        contrastive_loss(video, audio, torch.tensor([0.1]), group_size=2).backward()
    pairs = contrast_pairs(config, 1)
    assert pairs.products_per_update == 2
    assert 3 * 2 * pairs.similarities * width == counted.get_total_flops()


def test_contrast_grows_with_the_gpus_and_not_with_their_square(config):
    cluster, work = load_cluster(ROOT / "configs/clusters/h200.yaml"), {}
    for num_gpus in (8, 64, 128, 256, 1000):
        scaled = scaled_config(config, num_gpus, "weak")
        work[num_gpus] = contrast_seconds(scaled, cluster, Costs(), num_gpus)
    assert work[8] == work[64]  # the same clips of each GPU, in groups of the same size
    # From here on the group grows with the GPUs, as each of them has to hold a clip of it.
    assert work[128] == pytest.approx(2 * work[64])
    assert work[1000] / work[256] == pytest.approx(1000 / 256)


def test_one_rank_sends_nothing(config):
    assert update_traffic(config, trainable_sizes(config), 1) == []
    assert Collective("all_reduce", 100, 1, "gradients").seconds(Links(1.0, 1.0), 1) == 0


def test_what_overlaps_hides_behind_backward_passes_but_for_the_last():
    links = Links(0.0, 1.0)
    fixed, hidden = Collective("all_gather", 8, 1, "weights"), Collective("all_gather", 6, 2, "weights", overlaps=True)
    assert exposed_seconds([fixed], links, 2, compute=100, num_micro_batches=1) == 4
    assert exposed_seconds([fixed, hidden], links, 2, compute=100, num_micro_batches=2) == 4 + 3
    assert exposed_seconds([hidden], links, 2, compute=0.3, num_micro_batches=2) == pytest.approx(6 - 0.2)


def test_zero_shards_its_state_and_no_stage_holds_more_than_the_one_before(config):
    config, trained = staged(config, 0, global_batch_size=4096), trainable_sizes(config)
    alone, many = memory_by_stage(config, trained, 1), memory_by_stage(config, trained, 64)
    bytes_each = sum(4 * sizes.total for sizes in trained)
    assert alone[0].state == 4 * bytes_each
    assert alone[1].state == pytest.approx(5 * bytes_each, rel=1e-3)  # masters are no longer the weights
    assert many[1].state == pytest.approx((1 + 4 / 64) * bytes_each, rel=1e-3)
    held = [many[stage].weights + many[stage].masters + many[stage].moments + many[stage].ema for stage in range(4)]
    assert held[0] > held[1] >= held[2] > held[3]


def test_the_largest_micro_batch_fits_and_the_next_does_not(config):
    memory, available = rank_memory(config, trainable_sizes(config), 8), 80e9
    largest = memory.largest_micro_batch(available)
    assert memory.peak(largest) <= available < memory.peak(largest + 1)
    assert memory.largest_micro_batch(1e9) == 0


def test_goodput_is_that_of_failures_drawn_at_random():
    mean, interval, blocked, lag, restart = 1000.0, 120.0, 5.0, 20.0, 60.0
    draw = np.random.default_rng(0)
    clock = trained = 0.0
    for _ in range(40_000):  # segments
        overhead = 0.0
        while (life := draw.exponential(mean)) < overhead + interval + blocked:
            clock += life
            overhead = restart + lag
        clock += overhead + interval + blocked
        trained += interval
    expected = goodput(
        interval, blocked_seconds=blocked, lag_seconds=lag, restart_seconds=restart, mean_seconds_between_failures=mean
    )
    assert trained / clock == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("blocked", "mean"), [(1.0, 1e5), (30.0, 3600.0), (100.0, 1000.0)])
def test_dalys_interval_loses_least(blocked, mean):
    def share(interval: float) -> float:
        return goodput(
            interval, blocked_seconds=blocked, lag_seconds=0, restart_seconds=10, mean_seconds_between_failures=mean
        )

    best = best_interval(blocked, mean)
    assert share(best) >= max(share(best * factor) for factor in np.geomspace(0.1, 10, 201)) * (1 - 2e-4)
    assert best == pytest.approx(math.sqrt(2 * blocked * mean), rel=0.25)


def test_without_failures_only_saving_costs():
    assert best_interval(5.0, math.inf) == math.inf
    words = {"lag_seconds": 1.0, "restart_seconds": 1.0, "mean_seconds_between_failures": math.inf}
    assert goodput(95.0, blocked_seconds=5.0, **words) == 0.95


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 8, 64, 96, 1000])
@pytest.mark.parametrize(
    "overrides", [[], ["data.windows_per_sample=2"], ["data.windows_per_sample=8"], ["engine.micro_batch_size=8"]]
)
def test_a_batch_that_grows_with_the_gpus_divides_by_the_rules_of_the_config(num_gpus, overrides):
    config = load_config(ROOT / "configs/stage1_kinetics.yaml", overrides)
    scaled = scaled_config(config, num_gpus, "weak")
    assert scaled.accumulation_steps(num_gpus) >= 1
    assert scaled.engine.micro_batch_size == config.engine.micro_batch_size
    assert scaled.pretrain.contrastive_group_size >= min(64, num_gpus * config.engine.micro_batch_size)


@pytest.mark.parametrize("windows", [1, 2, 4, 8])
def test_a_config_that_runs_as_it_stands_is_not_changed_at_its_own_size(windows):
    config = load_config(ROOT / "configs/stage1_kinetics.yaml", [f"data.windows_per_sample={windows}"])
    row = simulate(config, trainable_sizes(config), load_cluster(CLUSTERS[0]), Costs(), 8, "weak")
    assert (row["batch"], row["changed"]) == (512, [])


def test_strong_scaling_keeps_the_batch_and_says_where_it_ends(config):
    assert scaled_config(config, 64, "strong").engine.micro_batch_size == 8
    with pytest.raises(ConfigError, match="contrastive_group_size 64 does not divide over 128 ranks"):
        scaled_config(config, 128, "strong")
    row = simulate(config, trainable_sizes(config), load_cluster(CLUSTERS[0]), Costs(), 1000, "strong")
    assert "engine.global_batch_size 512 does not divide over 1000 ranks" in row["problem"]


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_ready_cluster_gives_sensible_rows(config, path):
    cluster = load_cluster(path)
    trained = trainable_sizes(config)
    rows = [simulate(config, trained, cluster, Costs(), count, "weak") for count in (1, 8, 64)]
    assert all(0 < row["mfu"] <= 0.4 and 0 < row["goodput"] <= 1 for row in rows)
    assert all(row["hours"] > 0 and row["problem"] == "" for row in rows)
    parts = ("weights", "gradients", "masters", "moments", "ema", "contrast", "activations", "other")
    for row in rows:
        total = row[f"zero{config.engine.zero_stage}_gb"]
        assert sum(row[f"{part}_gb"] for part in parts) == pytest.approx(total)


def test_mfu_without_communication_is_what_was_assumed(config):
    config = replace(config, pretrain=replace(config.pretrain, contrastive_weight=0.0, adversarial_weight=0.0))
    row = simulate(
        config, trainable_sizes(config), load_cluster(ROOT / "configs/clusters/h200.yaml"), Costs(mfu=0.5), 1, "weak"
    )
    # 316 clips/s is 50 % of an H200 (AVFF-SPEC); Adam takes a millisecond and a half.
    assert row["clips_per_second"] == pytest.approx(316, rel=0.02)
    assert 0.49 < row["mfu"] < 0.5


def test_a_slow_loader_and_a_slow_disk_decide_and_are_named(config):
    cluster = load_cluster(ROOT / "configs/clusters/h200.yaml")
    trained = trainable_sizes(config)
    assert step_time(config, trained, cluster, Costs(), 8).limit == "compute"
    slow = step_time(config, trained, cluster, Costs(clips_per_second_per_core=5.0), 8)
    assert slow.limit == "loader"
    assert slow.total == pytest.approx(64 / 5.0 / 13)  # 14 cores for each of 8 GPUs, one of them for training
    disk = step_time(config, trained, replace(cluster, node_storage_gb_per_second=0.01), Costs(), 8)
    assert disk.limit == "storage"
    assert disk.read_gb_per_second == pytest.approx(0.01)


def test_processes_that_share_cores_take_turns(config):
    cluster = load_cluster(ROOT / "configs/clusters/laptop_cpu.yaml")
    config = staged(config, 0, micro_batch_size=8, global_batch_size=64)
    trained = trainable_sizes(config)
    speeds = [64 / step_time(config, trained, cluster, Costs(), count).compute for count in (1, 2, 4)]
    assert speeds[1] == pytest.approx(speeds[0])  # two cores are two cores
    assert speeds[2] == pytest.approx(speeds[0])
