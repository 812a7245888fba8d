"""Random choices are pure functions of their keys: pinned values, independence of the batch, right distributions."""

import numpy as np
import pytest
import torch

from avff.seeding import derive_seed, generator, hash_counters, normal, permutation, uniform

SEED_B = torch.tensor([0, 1, 2**62, -5, 123456789])

DERIVED = 8469469356773128629
PERMUTED = [6, 7, 4, 0, 1, 2, 3, 5]
UNIFORM = [
    [0.3079584836959839, 0.07471466064453125, 0.2214716672897339],
    [0.833143949508667, 0.6135122179985046, 0.8693031072616577],
]
HASHED = [9251275429962085968, 18288326961711206337]


def test_derived_seeds_depend_on_value_type_and_order() -> None:
    seeds = [
        derive_seed(1, "a"),
        derive_seed("a", 1),
        derive_seed("1", "a"),
        derive_seed(1, "a", ""),
        derive_seed(2, "a"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_values_never_change_between_versions() -> None:
    """A changed value here would change every run's data order and masks without a word."""
    assert derive_seed(0, "window", "key") == DERIVED
    assert permutation(8, "order", 3).tolist() == PERMUTED
    assert uniform(SEED_B[:2], "mask", 3).tolist() == UNIFORM
    assert hash_counters(np.arange(2, dtype=np.uint64), "x").tolist() == HASHED


def test_permutation_holds_every_number_once() -> None:
    for count in (0, 1, 7, 1000):
        assert sorted(permutation(count, "p", count).tolist()) == list(range(count))


def test_generator_starts_afresh() -> None:
    assert generator("a", 1).integers(1 << 30) == generator("a", 1).integers(1 << 30)
    assert generator("a", 1).integers(1 << 30) != generator("a", 2).integers(1 << 30)


def test_a_clips_numbers_do_not_depend_on_its_batch_or_on_how_many_are_drawn() -> None:
    together = uniform(SEED_B, "crop", 6)
    assert torch.equal(together[3:4], uniform(SEED_B[3:4], "crop", 6))
    assert torch.equal(together[:, :2], uniform(SEED_B, "crop", 2))
    assert torch.equal(together.view(5, 2, 3), uniform(SEED_B, "crop", 2, 3))
    assert uniform(SEED_B, "crop").shape == (5,)


def test_purposes_and_seeds_are_independent() -> None:
    seeds_B = torch.arange(4000)
    draws = torch.stack([uniform(seeds_B, "a"), uniform(seeds_B, "b"), uniform(seeds_B + 1, "a"), normal(seeds_B, "a")])
    correlation = torch.corrcoef(draws) - torch.eye(4)
    assert correlation.abs().max() < 0.06


def test_uniform_covers_the_unit_interval() -> None:
    values = uniform(torch.arange(200), "u", 500).flatten()
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, bins=20, min=0, max=1)
    assert (counts / len(values) - 0.05).abs().max() < 0.004


def test_normal_has_mean_0_variance_1_and_normal_tails() -> None:
    values = normal(torch.arange(200), "n", 500)
    assert values.shape == (200, 500) and values.isfinite().all()
    assert abs(values.mean()) < 0.02 and abs(values.var() - 1) < 0.02
    assert abs((values.abs() > 1.96).float().mean() - 0.05) < 0.005


@pytest.mark.gpu
def test_device_numbers_equal_the_hosts() -> None:
    assert torch.equal(uniform(SEED_B, "mask", 100), uniform(SEED_B.cuda(), "mask", 100).cpu())
