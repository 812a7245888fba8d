"""`avff probe`: what features hold, as nearest neighbours and a linear probe find it (AUC with 95 % intervals)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from avff.errors import EvaluationError
from avff.evaluation import bootstrap, metrics
from avff.evaluation.text import format_estimate
from avff.features.classifiers import (
    DEFAULT_STRENGTH,
    Fold,
    auc_metric,
    balanced_accuracy_metric,
    choose_strength,
    disjoint_folds,
    linear_scores,
    neighbour_scores,
)
from avff.features.examples import Examples, Label, Task, make_task
from avff.features.layout import FeatureTable, read_features
from avff.features.probe_plot import draw_probe
from avff.files import write_durably
from avff.progress import progress_bar

TOGETHER = "all"
"""Name of all feature sets laid side by side."""
DEFAULT_K = 20
SMALL_VALUES = 5_000_000
NOTHING_TO_CHOOSE_BY = (
    f"C of the linear probe is {DEFAULT_STRENGTH:g}, not chosen: there is no split val with two classes, and the training "
    "rows cannot be cut so that each part has people of its own and several classes."
)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What `probe` found and where it lies.

    Attributes:
        report: content of probe.json.
    """

    report: dict[str, Any]
    json_path: Path
    png_path: Path


def probe(
    train: Path,
    test: Path | None = None,
    *,
    label: Label = "is_fake",
    features: Sequence[str] = (),
    k: int = DEFAULT_K,
    output: Path | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Measures every feature set, and all together, and writes probe.json and probe.png.

    The linear probe's regularisation is chosen on the split `val`; without one, by cross-validation over people, never
    over single rows. Intervals resample people, too.

    Args:
        train: folder of an extraction; its split `train` is learnt, and `test` measured unless `test` is given.
        test: another extraction with the same network.
        label: what to tell apart; `category` has a mean of one-against-the-rest AUCs.
        features: of those extracted; none takes all.
        k: neighbours.
        output: folder to write to, `<train>/probe_<label>` by default.

    Raises:
        EvaluationError: an extraction is unfinished or of other features, a class is missing, or training and test
            share samples. Shared people are no error, but are said.
    """
    train_table = read_features(train)
    test_table = None if test is None else read_features(test)
    names = _choose_features(train_table, test_table, features)
    task = make_task(train_table, test_table, label)
    folds, chosen_by = _choose_folds(task)
    sets = {name: [name] for name in names} | ({TOGETHER: names} if len(names) > 1 else {})
    shown = progress_bar(sets.items(), total=len(sets), unit="feature set", description="probe", shown=progress)
    groups = bootstrap.make_groups([row.groups for row in task.test.rows])
    report = {
        "label": label,
        "classes": list(task.classes),
        "k": k,
        "train": task.train.count(task.classes),
        "validation": task.validation.count(task.classes) if task.validation else None,
        "test": {**task.test.count(task.classes), "groups": len(groups.unit_ids), "resampled": groups.method},
        "strength_chosen_by": chosen_by,
        "results": {name: _measure_set(task, blocks, k, folds, groups) for name, blocks in shown},
        "hazards": [*task.hazards, *([] if folds else [NOTHING_TO_CHOOSE_BY])],
        **{key: train_table.report[key] for key in ("checkpoint", "checkpoint_sha256", "level", "non_commercial")},
    }
    folder = output or train / f"probe_{label}"
    folder.mkdir(parents=True, exist_ok=True)
    result = ProbeResult(report=report, json_path=folder / "probe.json", png_path=folder / "probe.png")
    write_durably(result.json_path, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    write_durably(result.png_path, draw_probe(report))
    return result


def _choose_features(train: FeatureTable, test: FeatureTable | None, wanted: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(wanted)) or list(train.arrays)
    for table in (train, test):
        if table is not None and (missing := [name for name in names if name not in table.arrays]):
            raise EvaluationError(
                f"{table.path}: holds no {', '.join(missing)} features, only {', '.join(table.arrays)}; pass --features, or "
                "extract them"
            )
    return names


# ------------------------------------------------------------------------------------------- choosing


def _choose_folds(task: Task) -> tuple[list[Fold], str]:
    """Returns by which rows C is chosen, as indices into training rows followed by validation rows, and in words."""
    num_train = len(task.train.labels_N)
    if task.validation is not None:
        num_rows = num_train + len(task.validation.labels_N)
        return [Fold(np.arange(num_train), np.arange(num_train, num_rows))], task.validation.where
    folds = disjoint_folds(task.train.labels_N, _group_numbers(task.train))
    return folds, f"{len(folds)} folds of different people" if folds else "not chosen"


def _group_numbers(examples: Examples) -> np.ndarray:
    """Returns equal numbers for rows that share a person or original, directly or through others."""
    groups = [row.groups for row in examples.rows]
    component = bootstrap.components(groups)
    return np.unique([component[ids[0]] for ids in groups], return_inverse=True)[1]


# ------------------------------------------------------------------------------------------- measuring


def _measure_set(
    task: Task, features: Sequence[str], k: int, folds: Sequence[Fold], groups: bootstrap.Groups
) -> dict[str, Any]:
    # Threads that share a small product wait for each other, on a busy machine a hundred times as long as it takes.
    is_small = sum(part.table.arrays[name].size for part in (task.train, task.test) for name in features) < SMALL_VALUES
    with threadpool_limits(limits=1 if is_small else None):
        return _measure(task, features, k, folds, groups)


def _measure(
    task: Task, features: Sequence[str], k: int, folds: Sequence[Fold], groups: bootstrap.Groups
) -> dict[str, Any]:
    train = [task.train.values(name) for name in features]
    test = [task.test.values(name) for name in features]
    labels_N = task.train.labels_N
    strength = DEFAULT_STRENGTH
    if folds:
        choosing, choosing_labels = np.hstack(train), labels_N
        if task.validation:
            validation = np.hstack([task.validation.values(name) for name in features])
            choosing = np.vstack([choosing, validation])
            choosing_labels = np.concatenate([labels_N, task.validation.labels_N])
        strength = choose_strength(choosing, choosing_labels, folds)
    nearest = neighbour_scores(train, labels_N, test, k)
    linear = linear_scores(np.hstack(train), labels_N, np.hstack(test), strength)
    return {
        "dimensions": sum(block.shape[1] for block in train),
        "knn": _estimates(nearest, task.test.labels_N, groups),
        "linear": {**_estimates(linear, task.test.labels_N, groups), "strength": strength},
    }


def _estimates(scores_MC: np.ndarray, labels_M: np.ndarray, groups: bootstrap.Groups) -> dict[str, Any]:
    return {
        "auc": _estimate(auc_metric(scores_MC, labels_M), groups),
        "balanced_accuracy": _estimate(balanced_accuracy_metric(scores_MC, labels_M), groups),
    }


def _estimate(metric: metrics.Metric, groups: bootstrap.Groups) -> dict[str, Any]:
    """Returns {value, low, high, reason} of a metric that brings its own scores and labels."""
    unused_M = np.zeros(len(groups.units_of_clip))
    found = bootstrap.interval(metric, unused_M, unused_M, groups)
    return {
        "value": metrics.point(metric, unused_M, unused_M),
        "low": found.low,
        "high": found.high,
        "reason": found.reason,
    }


# ------------------------------------------------------------------------------------------- as text


def describe_probe(report: dict[str, Any]) -> str:
    """Returns counts, a table of all feature sets, and hazards, for a terminal."""
    lines = [
        f"{report['label']}, features per {report['level']}, k = {report['k']}, C chosen by: {report['strength_chosen_by']}"
    ]
    for part in ("train", "validation", "test"):
        if report[part]:
            lines.append(f"  {part:<11}{_describe_part(report[part], report['classes'])}")
    header = ("features", "values", "kNN AUC", "balanced acc.", "linear AUC", "balanced acc.", "C")
    rows = [header, *(_cells(name, result) for name, result in report["results"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"note: {hazard}" for hazard in report["hazards"])])


def _describe_part(part: dict[str, Any], classes: Sequence[str]) -> str:
    counts = ", ".join(f"{part[name]} {name}" for name in classes)
    unknown = f", {part['unknown']} of unknown label left out" if part["unknown"] else ""
    groups = f", {part['groups']} groups" if "groups" in part else ""
    return f"{part['rows']} rows of {part['samples']} samples ({counts}{unknown}{groups}): {part['where']}"


def _cells(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    knn, linear = result["knn"], result["linear"]
    estimates = [format_estimate(part[metric]) for part in (knn, linear) for metric in ("auc", "balanced_accuracy")]
    return name, str(result["dimensions"]), *estimates, f"{linear['strength']:g}"
