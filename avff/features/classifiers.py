"""Two simple classifiers of features: nearest neighbours, and a line. Neither changes the features.

Shape suffixes here: `N` training rows, `M` rows to classify, `D` values per row, `C` classes.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from avff.errors import EvaluationError
from avff.evaluation import metrics

NEIGHBOUR_TEMPERATURE = 0.07
"""Divides the cosine before the exponential that weighs a neighbour (Wu et al. 2018, "Unsupervised Feature Learning
via Non-Parametric Instance Discrimination", section 3.4)."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for logistic regression's C, the strongest regularisation first."""
DEFAULT_STRENGTH = 0.1
MAX_FOLDS = 5
_CHUNK_ELEMENTS = 20_000_000


class Fold(NamedTuple):
    """Rows to fit on and rows to choose by, as indices."""

    fit_N: np.ndarray
    choose_M: np.ndarray


# ------------------------------------------------------------------------------------------- nearest neighbours


def neighbour_scores(
    train: Sequence[np.ndarray], labels_N: np.ndarray, test: Sequence[np.ndarray], k: int
) -> np.ndarray:
    """Returns each class's share of the vote of the k nearest training rows by cosine, (M, C), rows sum to 1.

    A neighbour's vote weighs exp(cosine / 0.07), and every class has the same vote in all, however many rows it has.

    Args:
        train, test: blocks of features, (N, D) and (M, D) each; every block is scaled to unit length, so all count alike.
        labels_N: 0 to C - 1, each of them present.

    Raises:
        EvaluationError: there are not k training rows.
    """
    if not 1 <= k <= len(labels_N):
        raise EvaluationError(
            f"k is {k}, but there are {len(labels_N)} labelled training rows; pass --k {min(len(labels_N), max(k, 1))}"
        )
    train_ND, test_MD = _unit_blocks(train), _unit_blocks(test)
    votes_NC = (np.eye(labels_N.max() + 1) / np.bincount(labels_N))[labels_N]
    rows = max(1, _CHUNK_ELEMENTS // len(train_ND))
    return np.concatenate(
        [_vote(test_MD[start : start + rows] @ train_ND.T, votes_NC, k) for start in range(0, len(test_MD), rows)]
    )


def _vote(cosine_MN: np.ndarray, votes_NC: np.ndarray, k: int) -> np.ndarray:
    nearest_Mk = np.argpartition(-cosine_MN, k - 1, axis=1)[:, :k]
    cosine_Mk = np.take_along_axis(cosine_MN, nearest_Mk, axis=1).astype(np.float64)
    weights_Mk = np.exp((cosine_Mk - cosine_Mk.max(axis=1, keepdims=True)) / NEIGHBOUR_TEMPERATURE)
    share_MC = np.einsum("mk,mkc->mc", weights_Mk, votes_NC[nearest_Mk])
    return share_MC / share_MC.sum(axis=1, keepdims=True)


def _unit_blocks(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Joins blocks of equal length 1 into rows of length 1."""
    smallest = np.finfo(np.float32).tiny
    units = [block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), smallest) for block in blocks]
    return np.hstack(units) / np.sqrt(len(blocks))


# ------------------------------------------------------------------------------------------- linear


def linear_scores(train_ND: np.ndarray, labels_N: np.ndarray, test_MD: np.ndarray, strength: float) -> np.ndarray:
    """Fits logistic regression on standardised features, classes weighing alike; returns log-odds (M, C)."""
    return _scores(_fit(train_ND, labels_N, strength), test_MD)


def choose_strength(features_ND: np.ndarray, labels_N: np.ndarray, folds: Sequence[Fold]) -> float:
    """Returns the C with the highest mean AUC over the folds; of equal ones the strongest regularisation.

    Args:
        folds: from `disjoint_folds`, or one whose rows to choose by are a validation split.
    """
    mean = {
        strength: np.mean([_fold_auc(features_ND, labels_N, fold, strength) for fold in folds])
        for strength in STRENGTHS
    }
    return max(STRENGTHS, key=lambda strength: (round(mean[strength], 6), -strength))


def disjoint_folds(labels_N: np.ndarray, groups_N: np.ndarray) -> list[Fold]:
    """Cuts rows into at most five folds that share no group; none where people cannot be held out.

    Args:
        groups_N: any number per row, equal for rows that belong together.

    Returns:
        the folds that have every class to fit on, and two to choose by.
    """
    num_folds = int(min(MAX_FOLDS, len(np.unique(groups_N)), np.bincount(labels_N).min()))
    if num_folds < 2:
        return []
    cuts = StratifiedGroupKFold(num_folds).split(labels_N, labels_N, groups_N)
    folds = [Fold(fit_N, choose_M) for fit_N, choose_M in cuts]
    num_classes = len(np.unique(labels_N))
    return [
        fold
        for fold in folds
        if len(np.unique(labels_N[fold.fit_N])) == num_classes and len(np.unique(labels_N[fold.choose_M])) > 1
    ]


def _fit(train_ND: np.ndarray, labels_N: np.ndarray, strength: float) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000, class_weight="balanced"))
    with warnings.catch_warnings():
        # Nearly there is as good: a weak regularisation of separable features has no end to converge to.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(train_ND, labels_N)


def _scores(model: Pipeline, test_MD: np.ndarray) -> np.ndarray:
    odds = model.decision_function(test_MD)
    return odds if odds.ndim == 2 else np.stack([-odds, odds], axis=1)


def _fold_auc(features_ND: np.ndarray, labels_N: np.ndarray, fold: Fold, strength: float) -> float:
    scores_MC = linear_scores(features_ND[fold.fit_N], labels_N[fold.fit_N], features_ND[fold.choose_M], strength)
    labels_M = labels_N[fold.choose_M]
    return metrics.point(auc_metric(scores_MC, labels_M), scores_MC[:, 0], labels_M > 0)


# ------------------------------------------------------------------------------------------- metrics of several classes


def auc_metric(scores_MC: np.ndarray, labels_M: np.ndarray) -> metrics.Metric:
    """Returns the AUC of two classes (the second being found), or the mean of one-against-the-rest of several.

    The metric has these scores and labels in it; only the weights that it is called with count.
    """
    columns = [1] if scores_MC.shape[1] == 2 else np.unique(labels_M).tolist()
    pairs = [(scores_MC[:, column], (labels_M == column).astype(np.int64)) for column in columns]

    def metric(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
        del scores_N, labels_N
        return np.mean([metrics.weighted_roc_auc(scores_M, is_M, weights_RN) for scores_M, is_M in pairs], axis=0)

    return metric


def balanced_accuracy_metric(scores_MC: np.ndarray, labels_M: np.ndarray) -> metrics.Metric:
    """Returns the mean over classes of the share of rows given to their own class; as `auc_metric` otherwise."""
    is_right_M = scores_MC.argmax(axis=1) == labels_M
    members = [labels_M == label for label in np.unique(labels_M)]

    def metric(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
        del scores_N, labels_N
        with np.errstate(invalid="ignore"):
            return np.mean([weights_RN @ (is_M & is_right_M) / (weights_RN @ is_M) for is_M in members], axis=0)

    return metric
