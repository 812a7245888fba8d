"""The baselines' classifiers: they find what is there, nothing where nothing is, and repeat exactly."""

import numpy as np
import pytest

from avff.errors import EvaluationError
from avff.evaluation.baselines import boosting_logits, probe_logits
from avff.evaluation.metrics import roc_auc


@pytest.fixture
def data():
    """Noise features of 200 clips; `shortcut` adds the label to one of them."""

    def make(shortcut: float):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, 200)
        features = rng.normal(size=(200, 12))
        features[:, 5] += shortcut * labels
        return features[:100], labels[:100], features[100:], labels[100:]

    return make


@pytest.mark.parametrize("fit", [boosting_logits, probe_logits])
def test_a_shortcut_is_found_and_noise_is_not(data, fit):
    train, labels, test, test_labels = data(4.0)
    assert roc_auc(fit(train, labels, test), test_labels) > 0.9
    train, labels, test, test_labels = data(0.0)
    assert 0.3 < roc_auc(fit(train, labels, test), test_labels) < 0.7
    assert np.array_equal(fit(train, labels, test), fit(train, labels, test))


def test_boosting_reads_missing_values(data):
    train, labels, test, test_labels = data(0.0)
    train[labels == 1, 3], test[test_labels == 1, 3] = np.nan, np.nan
    assert roc_auc(boosting_logits(train, labels, test), test_labels) > 0.95


@pytest.mark.parametrize("fit", [boosting_logits, probe_logits])
def test_one_class_teaches_nothing(fit):
    with pytest.raises(EvaluationError, match="all 4 clips are real"):
        fit(np.zeros((4, 2)), np.zeros(4, int), np.zeros((1, 2)))
