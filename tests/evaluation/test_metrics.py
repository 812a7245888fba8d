"""Metrics against scikit-learn, by hand, and where they have no value."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from avff.errors import EvaluationError
from avff.evaluation import metrics

HAND_SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.3])
HAND_LABELS = np.array([1, 0, 1, 1, 0])


@pytest.fixture
def noisy():
    """300 clips with many tied scores and 1 fake in 5."""
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.2).astype(int)
    return np.round(rng.normal(labels, 1.5), 1), labels


def test_roc_auc_and_average_precision_equal_sklearn_with_ties(noisy):
    scores, labels = noisy
    assert len(np.unique(scores)) < 100
    assert metrics.roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    expected = average_precision_score(1 - labels, -scores)
    assert metrics.average_precision_real(scores, labels) == pytest.approx(expected)


def test_integer_weights_equal_repeated_clips(noisy):
    scores, labels = noisy
    weights = np.random.default_rng(1).integers(0, 4, len(scores))
    repeated_scores, repeated_labels = np.repeat(scores, weights), np.repeat(labels, weights)
    for metric in (
        metrics.weighted_roc_auc,
        metrics.weighted_average_precision,
        metrics.weighted_average_precision_real,
        metrics.weighted_equal_error_rate,
        metrics.weighted_balanced_accuracy(0.5),
        metrics.weighted_tpr_at_fpr(0.05),
    ):
        weighted = metric(scores, labels, np.stack([weights, np.ones_like(weights)]).astype(float))
        assert weighted[0] == pytest.approx(metrics.point(metric, repeated_scores, repeated_labels))
        assert weighted[1] == pytest.approx(metrics.point(metric, scores, labels))


def test_hand_computed_values():
    assert metrics.roc_auc(HAND_SCORES, HAND_LABELS) == pytest.approx(4 / 6)
    assert metrics.average_precision(HAND_SCORES, HAND_LABELS) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert metrics.average_precision_real(HAND_SCORES, HAND_LABELS) == pytest.approx((1 + 2 / 4) / 2)
    # At 0.65: two of three fakes found, one of two reals kept.
    assert metrics.balanced_accuracy(HAND_SCORES, HAND_LABELS, 0.65) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # The ROC runs flat from 0 to 1/2 false at 1/3 true, then up: both errors meet at 1/2.
    assert metrics.equal_error_rate(HAND_SCORES, HAND_LABELS) == pytest.approx(0.5)
    assert metrics.tpr_at_fpr(HAND_SCORES, HAND_LABELS, 0.01) == pytest.approx(1 / 3)
    assert metrics.tpr_at_fpr(HAND_SCORES, HAND_LABELS, 0.5) == pytest.approx(1)


def test_a_threshold_equal_to_a_score_calls_it_fake():
    assert metrics.balanced_accuracy(np.array([0.5, 0.4]), np.array([1, 0]), threshold=0.5) == 1


def test_equal_error_rate_lies_on_the_roc(noisy):
    scores, labels = noisy
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    grid = np.linspace(0, 1, 100_001)
    error = np.abs(grid - (1 - np.interp(grid, false_rate, true_rate)))
    assert metrics.equal_error_rate(scores, labels) == pytest.approx(grid[np.argmin(error)], abs=1e-4)


def test_calibration_error_by_hand():
    probabilities = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    labels = np.array([1, 1, 1, 0, 0, 0])
    assert metrics.calibration_error(probabilities, labels) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert metrics.calibration_error(np.array([1.0, 0.0]), np.array([1, 0])) == 0


def test_best_threshold_is_the_best_of_all_and_lies_between_scores(noisy):
    scores, labels = noisy
    threshold = metrics.best_threshold(scores, labels)
    best = max(metrics.balanced_accuracy(scores, labels, t) for t in np.arange(-8, 8, 0.05))
    assert metrics.balanced_accuracy(scores, labels, threshold) == pytest.approx(best)
    assert threshold not in scores
    assert metrics.best_threshold(np.array([0.2, 0.8]), np.array([0, 1])) == pytest.approx(0.5)


def test_best_threshold_of_an_inverted_detector_is_no_better_than_chance():
    threshold = metrics.best_threshold(np.array([0.2, 0.8]), np.array([1, 0]))
    assert metrics.balanced_accuracy(np.array([0.2, 0.8]), np.array([1, 0]), threshold) == pytest.approx(0.5)


@pytest.mark.parametrize(("label", "word"), [(0, "real"), (1, "fake")])
def test_one_class_has_no_value_and_a_reason(label, word):
    scores, labels = np.array([0.1, 0.9, 0.5]), np.full(3, label)
    for metric in (
        metrics.roc_auc,
        metrics.average_precision,
        metrics.average_precision_real,
        metrics.equal_error_rate,
        metrics.tpr_at_fpr,
        metrics.best_threshold,
    ):
        assert np.isnan(metric(scores, labels)), metric.__name__
    assert np.isnan(metrics.balanced_accuracy(scores, labels, 0.5))
    assert metrics.undefined_reason(labels) == f"all 3 clips are {word}"


def test_two_classes_have_no_reason():
    assert metrics.undefined_reason(HAND_LABELS) is None


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        ([0.1, np.nan], [0, 1], "1 of 2 scores are not finite"),
        ([0.1, 0.2], [0, -1], r"found \[-1, 0\]"),
        ([0.1], [0, 1], "one score per label"),
        ([], [], "one score per label"),
    ],
)
def test_bad_input_is_refused(scores, labels, match):
    with pytest.raises(EvaluationError, match=match):
        metrics.roc_auc(np.array(scores), np.array(labels))
