"""Detection metrics of scores against labels, for one weighting of the clips or for many at once.

Every metric is written once, for R weightings: the point estimate has one row of ones, the bootstrap
(avff.evaluation.bootstrap) one row per resample. A metric that needs both classes is NaN where one is missing;
`undefined_reason` says so in words, and no number ever stands in for it.

Shape suffixes here: `N` clips, `R` weightings, `U` distinct scores, `E` bins.
"""

from typing import NamedTuple, Protocol

import numpy as np

from avff.errors import EvaluationError

NUM_CALIBRATION_BINS = 15


class Metric(Protocol):
    """Maps scores_N, labels_N and weights_RN to values_R."""

    def __call__(self, scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray: ...


class Curve(NamedTuple):
    """Weighted counts of clips at or above each distinct score, from the highest score down.

    Attributes:
        thresholds_U: distinct scores, falling.
        true_RU, false_RU: weight of fake and of real clips scored at or above the threshold.
    """

    thresholds_U: np.ndarray
    true_RU: np.ndarray
    false_RU: np.ndarray

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the false and the true positive rate, (R, 1 + U) each, from (0, 0) to (1, 1); NaN without the class."""
        with np.errstate(invalid="ignore"):
            false_rate = self.false_RU / self.false_RU[:, -1:]
            true_rate = self.true_RU / self.true_RU[:, -1:]
        start = np.zeros((len(false_rate), 1))
        return np.hstack([start, false_rate]), np.hstack([start, true_rate])


def check(scores_N: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores as float64 and labels as int64.

    Raises:
        EvaluationError: no clips, lengths differ, a score is not finite, or a label is neither 0 nor 1.
    """
    scores_N, labels_N = np.asarray(scores_N, np.float64), np.asarray(labels_N)
    if scores_N.shape != labels_N.shape or scores_N.ndim != 1 or not len(scores_N):
        raise EvaluationError(f"metrics need one score per label, got shapes {scores_N.shape} and {labels_N.shape}")
    if bad := int((~np.isfinite(scores_N)).sum()):
        raise EvaluationError(f"{bad} of {len(scores_N)} scores are not finite; the model or its weights are broken")
    if not np.isin(labels_N, (0, 1)).all():
        raise EvaluationError(f"labels have to be 0 (real) or 1 (fake), found {sorted(set(labels_N.tolist()))}")
    return scores_N, labels_N.astype(np.int64)


def undefined_reason(labels_N: np.ndarray) -> str | None:
    """Returns why a two-class metric has no value on these labels, or None when it has one."""
    num_fake, num_clips = int(np.sum(labels_N)), len(labels_N)
    if num_clips == 0:
        return "no clips"
    if num_fake == 0:
        return f"all {num_clips} clips are real"
    if num_fake == num_clips:
        return f"all {num_clips} clips are fake"
    return None


def curve(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> Curve:
    """Counts clips at or above every distinct score; equal scores move together, so ties earn no order."""
    order = np.argsort(-scores_N, kind="stable")
    sorted_scores = scores_N[order]
    run_ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))
    weights_RN, fake_N = weights_RN[:, order], labels_N[order]
    true_RU = np.cumsum(weights_RN * fake_N, axis=1)[:, run_ends]
    false_RU = np.cumsum(weights_RN * (1 - fake_N), axis=1)[:, run_ends]
    return Curve(sorted_scores[run_ends], true_RU, false_RU)


# ------------------------------------------------------------------------------------------- weighted metrics


def weighted_roc_auc(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Chance that a fake clip scores above a real one, ties counting half."""
    false_rate, true_rate = curve(scores_N, labels_N, weights_RN).rates()
    return np.sum(np.diff(false_rate, axis=1) * (true_rate[:, 1:] + true_rate[:, :-1]) / 2, axis=1)


def weighted_average_precision(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Step-wise area under precision over recall of the fake class, without interpolation."""
    points = curve(scores_N, labels_N, weights_RN)
    total = points.true_RU + points.false_RU
    precision = np.divide(points.true_RU, total, out=np.zeros_like(total), where=total > 0)
    _, recall = points.rates()
    return _both_classes(points, np.sum(np.diff(recall, axis=1) * precision, axis=1))


def weighted_average_precision_real(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Average precision when looking for the real clips, by falling realness."""
    return weighted_average_precision(-scores_N, 1 - labels_N, weights_RN)


def weighted_equal_error_rate(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Error where as many real clips are called fake as fake ones real, on the straight-line ROC."""
    false_rate, true_rate = curve(scores_N, labels_N, weights_RN).rates()
    excess = false_rate + true_rate - 1  # rises from -1 to 1; zero where the two errors are equal
    rows = np.arange(len(excess))
    above = np.argmax(excess >= 0, axis=1)
    share = -excess[rows, above - 1] / (excess[rows, above] - excess[rows, above - 1])
    return false_rate[rows, above - 1] + share * (false_rate[rows, above] - false_rate[rows, above - 1])


def weighted_balanced_accuracy(threshold: float) -> Metric:
    """Returns the metric: mean of the shares of real and of fake clips called right at `score >= threshold`."""

    def metric(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
        called_fake_N = scores_N >= threshold
        with np.errstate(invalid="ignore"):
            true_rate = weights_RN @ (called_fake_N & (labels_N == 1)) / (weights_RN @ (labels_N == 1))
            true_real_rate = weights_RN @ (~called_fake_N & (labels_N == 0)) / (weights_RN @ (labels_N == 0))
        return (true_rate + true_real_rate) / 2

    return metric


def weighted_tpr_at_fpr(max_false_rate: float) -> Metric:
    """Returns the metric: share of fake clips found at the lowest threshold that calls at most so many reals fake."""

    def metric(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
        points = curve(scores_N, labels_N, weights_RN)
        false_rate, true_rate = points.rates()
        return _both_classes(points, np.max(np.where(false_rate <= max_false_rate, true_rate, 0), axis=1))

    return metric


def weighted_calibration_error(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Expected calibration error of probabilities: mean gap of predicted and observed share of fakes over the bins."""
    bins_N = calibration_bins(scores_N)
    one_hot_NE = np.eye(NUM_CALIBRATION_BINS)[bins_N]
    gap_RE = (weights_RN * (scores_N - labels_N)) @ one_hot_NE
    return np.sum(np.abs(gap_RE), axis=1) / weights_RN.sum(axis=1)


def calibration_bins(probabilities_N: np.ndarray) -> np.ndarray:
    """Returns each probability's bin, [0, 1/15) being bin 0 and 1.0 falling into the last."""
    return np.clip((probabilities_N * NUM_CALIBRATION_BINS).astype(int), 0, NUM_CALIBRATION_BINS - 1)


def _both_classes(points: Curve, values_R: np.ndarray) -> np.ndarray:
    defined = (points.true_RU[:, -1] > 0) & (points.false_RU[:, -1] > 0)
    return np.where(defined, values_R, np.nan)


# ------------------------------------------------------------------------------------------- plain numbers


def point(metric: Metric, scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Returns a metric's value with every clip counting once; NaN where `undefined_reason` says why."""
    scores_N, labels_N = check(scores_N, labels_N)
    return float(metric(scores_N, labels_N, np.ones((1, len(scores_N))))[0])


def roc_auc(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Area under the ROC curve; NaN when one class is missing."""
    return point(weighted_roc_auc, scores_N, labels_N)


def average_precision(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Average precision of the fake class; NaN when one class is missing."""
    return point(weighted_average_precision, scores_N, labels_N)


def average_precision_real(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Average precision of the real class; NaN when one class is missing."""
    return point(weighted_average_precision_real, scores_N, labels_N)


def equal_error_rate(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Equal error rate; NaN when one class is missing."""
    return point(weighted_equal_error_rate, scores_N, labels_N)


def balanced_accuracy(scores_N: np.ndarray, labels_N: np.ndarray, threshold: float) -> float:
    """Balanced accuracy of `score >= threshold`; NaN when one class is missing."""
    return point(weighted_balanced_accuracy(threshold), scores_N, labels_N)


def tpr_at_fpr(scores_N: np.ndarray, labels_N: np.ndarray, max_false_rate: float = 0.01) -> float:
    """Share of fakes found with at most this share of reals called fake; NaN when one class is missing."""
    return point(weighted_tpr_at_fpr(max_false_rate), scores_N, labels_N)


def calibration_error(probabilities_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Expected calibration error of probabilities in [0, 1]."""
    return point(weighted_calibration_error, probabilities_N, labels_N)


def best_threshold(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Returns the threshold with the highest balanced accuracy, to be chosen on validation data only.

    Returns:
        Half way between two neighbouring scores, so that rounding on another device moves no clip across it; of
        several equally good ones the middle one. NaN when one class is missing.
    """
    scores_N, labels_N = check(scores_N, labels_N)
    if undefined_reason(labels_N):
        return float("nan")
    points = curve(scores_N, labels_N, np.ones((1, len(scores_N))))
    false_rate, true_rate = points.rates()
    gain_U = (true_rate - false_rate)[0, 1:]  # of calling fake whatever scores at least thresholds_U
    best = np.flatnonzero(gain_U >= gain_U.max() - 1e-12)
    chosen = int(best[len(best) // 2])
    below = min(chosen + 1, len(gain_U) - 1)
    return float((points.thresholds_U[chosen] + points.thresholds_U[below]) / 2)
