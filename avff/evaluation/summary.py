"""From rows to numbers: overall, per head, per category and per method, each with its interval and its counts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from avff.evaluation import bootstrap, metrics
from avff.evaluation.hazards import find_hazards
from avff.evaluation.rows import Row, Table

FAKE_CATEGORIES = ("RVFA", "FVRA", "FVFA")
MAX_FALSE_RATE = 0.01


def summarize(table: Table, *, allow_missing: bool = False, seed: int = 0) -> dict[str, Any]:
    """Returns every number of one detector as plain values, ready for JSON.

    Args:
        allow_missing: give metrics of the scored clips although some are missing; the counts say so.

    Raises:
        EvaluationError: clips are missing.
    """
    if not allow_missing:
        table.require_complete()
    decided = table.decided
    labelled = [row for row in decided if row.is_fake is not None]
    return {
        **_identity(table.rows),
        "expected": table.expected,
        "scored": len(table.rows),
        "missing": table.missing,
        "num_decided": len(decided),
        "num_unlabelled": len(decided) - len(labelled),
        "undecided": _undecided(table),
        "seconds_per_clip": float(np.mean([row.seconds_spent for row in decided])) if decided else None,
        "overall": measure(labelled, seed=seed),
        "heads": {name: _head(decided, name, seed) for name in ("video", "audio")},
        "categories": _by_category(labelled, seed),
        "methods": _by_method(labelled, seed),
        "hazards": find_hazards(table.rows, seed=seed),
    }


def measure(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Returns every metric of the overall score on labelled, decided rows."""
    probabilities_N = np.array([row.fake_probability for row in rows], dtype=np.float64)
    logits_N = np.array([row.fake_logit for row in rows], dtype=np.float64)
    labels_N = np.array([row.is_fake for row in rows], dtype=np.int64)
    threshold = next((row.threshold for row in rows if row.threshold is not None), None)
    result = _ranking(rows, logits_N, labels_N, seed)
    if not len(rows):
        return result
    groups = make_row_groups(rows)
    result["ece"] = estimate(metrics.weighted_calibration_error, probabilities_N, labels_N, groups, seed)
    result["threshold"] = threshold
    if threshold is None:
        result["balanced_accuracy"] = undefined("no threshold from validation")
    else:
        at_threshold = metrics.weighted_balanced_accuracy(threshold)
        result["balanced_accuracy"] = estimate(at_threshold, probabilities_N, labels_N, groups, seed)
    return result


def estimate(
    metric: metrics.Metric, scores_N: np.ndarray, labels_N: np.ndarray, groups: bootstrap.Groups, seed: int
) -> dict[str, Any]:
    """Returns {value, low, high, reason}; value is None, with the reason, where the metric has none."""
    value = metrics.point(metric, scores_N, labels_N)
    if np.isnan(value):
        return undefined(metrics.undefined_reason(labels_N) or "undefined on these clips")
    found = bootstrap.interval(metric, scores_N, labels_N, groups, seed=seed)
    return {"value": value, "low": found.low, "high": found.high, "reason": found.reason}


def undefined(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "reason": reason}


def make_row_groups(rows: Sequence[Row]) -> bootstrap.Groups:
    """Returns the resampled units of the rows; segments of one video stay together where no group is named."""
    return bootstrap.make_groups([row.group_ids or [f"source {row.dataset}/{row.source_key}"] for row in rows])


def _ranking(rows: Sequence[Row], scores_N: np.ndarray, labels_N: np.ndarray, seed: int) -> dict[str, Any]:
    """Counts and the metrics that need an order of the clips only."""
    counts = {"num_clips": len(rows), "num_fake": int(labels_N.sum()), "num_real": int((1 - labels_N).sum())}
    if not len(rows):
        return {**counts, "num_groups": 0, "auc": undefined("no clips")}
    groups = make_row_groups(rows)
    ranking: dict[str, metrics.Metric] = {
        "auc": metrics.weighted_roc_auc,
        "ap_fake": metrics.weighted_average_precision,
        "ap_real": metrics.weighted_average_precision_real,
        "eer": metrics.weighted_equal_error_rate,
        "tpr_at_1_percent_fpr": metrics.weighted_tpr_at_fpr(MAX_FALSE_RATE),
    }
    return {
        **counts,
        "num_groups": len(groups.unit_ids),
        "resampled": groups.method,
        **{name: estimate(metric, scores_N, labels_N, groups, seed) for name, metric in ranking.items()},
    }


def _head(decided: Sequence[Row], name: str, seed: int) -> dict[str, Any]:
    """Measures the head of one modality against that modality's labels."""
    scored = [row for row in decided if getattr(row, f"{name}_fake_logit") is not None]
    known = [row for row in scored if getattr(row, f"{name}_is_fake") is not None]
    logits_N = np.array([getattr(row, f"{name}_fake_logit") for row in known], dtype=np.float64)
    labels_N = np.array([getattr(row, f"{name}_is_fake") for row in known], dtype=np.int64)
    found = _ranking(known, logits_N, labels_N, seed)
    return {**found, "auc": undefined("the detector has no such head")} if decided and not scored else found


def _by_category(labelled: Sequence[Row], seed: int) -> dict[str, Any]:
    """Each fake category against all real clips."""
    present = [name for name in FAKE_CATEGORIES if any(row.category == name for row in labelled)]
    return {name: measure([r for r in labelled if not r.is_fake or r.category == name], seed=seed) for name in present}


def _by_method(labelled: Sequence[Row], seed: int) -> dict[str, Any]:
    """Each forging method against all real clips; a clip made with two methods counts in both."""
    present = sorted({method for row in labelled if row.is_fake for method in row.methods})
    return {name: measure([r for r in labelled if not r.is_fake or name in r.methods], seed=seed) for name in present}


def _undecided(table: Table) -> dict[str, Any]:
    counts = Counter(status for row in table.undecided for status in row.status)
    return {
        "count": len(table.undecided),
        "by_status": dict(sorted(counts.items())),
        "clips": [{"key": row.key, "status": row.status, "is_fake": row.is_fake} for row in table.undecided],
    }


def _identity(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows agree on; lists where they differ."""

    def distinct(name: str) -> Any:
        values = sorted({getattr(row, name) for row in rows})
        return values[0] if len(values) == 1 else values

    names = ("run", "detector", "dataset", "split", "window_aggregation")
    sha256 = sorted({digest for row in rows for digest in row.checkpoint_sha256})
    return {**{name: distinct(name) for name in names}, "checkpoint_sha256": sha256}
