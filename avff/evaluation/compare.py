"""Two detectors on the same clips, or one detector under several seeds, with intervals that keep the pairing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avff.errors import EvaluationError
from avff.evaluation import bootstrap, metrics
from avff.evaluation.rows import Row
from avff.evaluation.summary import make_row_groups


def auc_difference(first: Sequence[Row], second: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Returns AUC(first) - AUC(second) as {value, low, high, reason}, paired over groups.

    Raises:
        EvaluationError: the detectors did not decide the same clips.
    """
    (first_N, second_N), rows = _align([first, second])
    labels_N = np.array([row.is_fake for row in rows])
    found = bootstrap.difference_interval(
        metrics.weighted_roc_auc, first_N, second_N, labels_N, make_row_groups(rows), seed=seed
    )
    value = metrics.roc_auc(first_N, labels_N) - metrics.roc_auc(second_N, labels_N)
    return _estimate(value, found, labels_N)


def mean_auc(rows_per_seed: Sequence[Sequence[Row]], *, seed: int = 0) -> dict[str, Any]:
    """Returns the mean AUC over several seeds of one detector as {value, low, high, reason, per_seed}.

    Groups are resampled and the mean over seeds is taken inside every resample.

    Raises:
        EvaluationError: the seeds did not decide the same clips.
    """
    scores_SN, rows = _align(rows_per_seed)
    labels_N = np.array([row.is_fake for row in rows])

    def metric(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
        del scores_N  # all seeds are scored at once
        return np.mean([metrics.weighted_roc_auc(one_N, labels_N, weights_RN) for one_N in scores_SN], axis=0)

    per_seed = [metrics.roc_auc(one_N, labels_N) for one_N in scores_SN]
    found = bootstrap.interval(metric, scores_SN[0], labels_N, make_row_groups(rows), seed=seed)
    return {**_estimate(float(np.mean(per_seed)), found, labels_N), "per_seed": per_seed}


def _align(tables: Sequence[Sequence[Row]]) -> tuple[list[np.ndarray], list[Row]]:
    """Returns one array of logits per table and the rows of the first, in one order of clips."""
    by_clip = [{(r.dataset, r.key): r for r in rows if r.decided and r.is_fake is not None} for rows in tables]
    for other in by_clip[1:]:
        if odd := sorted(by_clip[0].keys() ^ other.keys()):
            raise EvaluationError(
                f"detectors are compared on the same clips, but {len(odd)} clips were decided by only one of them, "
                f"first {odd[0][1]!r} of dataset {odd[0][0]!r}"
            )
    clips = sorted(by_clip[0])
    scores = [np.array([table[clip].fake_logit for clip in clips], dtype=np.float64) for table in by_clip]
    return scores, [by_clip[0][clip] for clip in clips]


def _estimate(value: float, found: bootstrap.Interval, labels_N: np.ndarray) -> dict[str, Any]:
    if reason := metrics.undefined_reason(labels_N):
        return {"value": None, "low": None, "high": None, "reason": reason}
    return {"value": float(value), "low": found.low, "high": found.high, "reason": found.reason}
