"""Two detectors that must fail: if either does well, the data are solvable by a shortcut."""

import warnings

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from avff.errors import EvaluationError
from avff.evaluation.metrics import undefined_reason


def boosting_logits(train_ND: np.ndarray, labels_N: np.ndarray, test_ND: np.ndarray) -> np.ndarray:
    """Fits gradient boosting on features of the training clips; returns the test clips' log-odds of fake.

    Args:
        train_ND, test_ND: features; NaN is a value that a clip lacks.

    Raises:
        EvaluationError: the training clips are all of one class.
    """
    _require_both(labels_N)
    model = HistGradientBoostingClassifier(
        max_iter=200,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        l2_regularization=1.0,
        early_stopping=False,
        class_weight="balanced",
        random_state=0,
    )
    # A few hundred clips are fitted in a second by one thread; several would only wait for each other.
    with threadpool_limits(limits=1):
        return model.fit(train_ND, labels_N).decision_function(test_ND)


def probe_logits(train_ND: np.ndarray, labels_N: np.ndarray, test_ND: np.ndarray) -> np.ndarray:
    """Fits a linear probe (standardised features, logistic regression); returns the test clips' log-odds of fake.

    Raises:
        EvaluationError: the training clips are all of one class.
    """
    _require_both(labels_N)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        return model.fit(train_ND, labels_N).decision_function(test_ND)


def _require_both(labels_N: np.ndarray) -> None:
    if reason := undefined_reason(labels_N):
        raise EvaluationError(f"a baseline learns from real and fake training clips, but {reason}")
