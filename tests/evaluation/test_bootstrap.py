"""Bootstrap over groups: grouping, coverage, pairing, and refusing to invent an interval."""

import numpy as np
import pytest

from avff.evaluation.bootstrap import clip_weights, difference_interval, draw_units, interval, make_groups
from avff.evaluation.metrics import weighted_roc_auc


def clustered(seed: int, num_groups: int = 30, per_group: int = 8, spread: float = 1.0):
    """Scores whose groups share an offset; real and fake clips in every group. True AUC: Phi(1 / sqrt(2 + 2 spread^2))."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], num_groups * per_group // 2)
    group = np.repeat(np.arange(num_groups), per_group)
    scores = labels + rng.normal(0, 1, len(labels)) + rng.normal(0, spread, num_groups)[group]
    return scores, labels, make_groups([[f"person{g}"] for g in group])


def test_shared_ids_join_groups_transitively():
    pairs = [[f"p{i}"] for i in range(20)]
    groups = make_groups([["a", "b"], ["b", "c"], ["c"], ["d"], [], [], *pairs])
    units = groups.units_of_clip
    assert groups.method == "components"
    assert units[0] == units[1] == units[2]
    assert len({units[0], *units[3:6]}) == 4, "a clip without ids is a group of its own"
    assert len(groups.unit_ids) == 24


def test_components_do_not_depend_on_the_order_of_clips():
    ids = [[f"p{i}", f"p{i + 1}"] for i in range(0, 60, 3)]
    forward, backward = make_groups(ids), make_groups(ids[::-1])
    assert forward.unit_ids == backward.unit_ids
    assert forward.units_of_clip == backward.units_of_clip[::-1]


def test_densely_swapped_persons_are_resampled_one_by_one():
    groups = make_groups([[f"p{i:02}", f"p{(i + 1) % 12:02}"] for i in range(12)])
    assert groups.method == "crossed_ids" and groups.unit_ids == tuple(f"p{i:02}" for i in range(12))
    drawn = draw_units(groups, 0, 500)
    assert np.array_equal(clip_weights(groups, drawn), drawn * np.roll(drawn, -1, axis=1))


def test_weights_draw_whole_groups():
    groups = make_groups([[f"p{i // 3}"] for i in range(60)])
    drawn = draw_units(groups, 3, 200)
    weights = clip_weights(groups, drawn)
    assert (weights.sum(axis=1) == 60).all()
    assert (weights.reshape(200, 20, 3) == weights.reshape(200, 20, 3)[:, :, :1]).all()
    assert np.array_equal(drawn, draw_units(groups, 3, 200))
    assert not np.array_equal(drawn, draw_units(groups, 4, 200))


@pytest.mark.slow
def test_interval_covers_the_truth_about_95_times_in_100():
    truth = 0.6915  # Phi(1 / sqrt(4))
    hits = 0
    for seed in range(200):
        scores, labels, groups = clustered(seed)
        found = interval(weighted_roc_auc, scores, labels, groups, num_resamples=400)
        hits += found.low <= truth <= found.high
    assert 176 <= hits <= 199, "between 88 % and 99.5 %, three standard errors around 95 % and a small-sample allowance"


def test_resampling_clips_would_be_too_narrow():
    """Between-group detection power differs, so ignoring groups must give a shorter interval."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 150)
    group = np.repeat(np.arange(15), 20)
    scores = labels * rng.normal(0.5, 2, 15)[group] + rng.normal(0, 1, 300)
    grouped = interval(weighted_roc_auc, scores, labels, make_groups([[f"p{g}"] for g in group]))
    single = interval(weighted_roc_auc, scores, labels, make_groups([[] for _ in group]))
    assert grouped.high - grouped.low > 1.5 * (single.high - single.low)


def test_paired_difference_is_narrower_than_its_parts_and_zero_for_equals():
    scores, labels, groups = clustered(0)
    better = scores + 0.4 * labels
    same = difference_interval(weighted_roc_auc, scores, scores, labels, groups)
    assert (same.low, same.high) == (0, 0)
    paired = difference_interval(weighted_roc_auc, better, scores, labels, groups)
    alone = interval(weighted_roc_auc, scores, labels, groups)
    assert 0 < paired.low < paired.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_no_interval_from_one_group_or_one_class():
    scores, labels = np.array([0.1, 0.9, 0.4]), np.array([0, 1, 1])
    assert (
        interval(weighted_roc_auc, scores, labels, make_groups([["a"]] * 3)).reason == "all clips belong to one group"
    )
    none = interval(weighted_roc_auc, scores, np.ones(3, int), make_groups([["a"], ["b"], ["c"]]), num_resamples=50)
    assert (none.low, none.high) == (None, None) and none.reason == "undefined in 50 of 50 resamples"
