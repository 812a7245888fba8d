"""Which rows of an extraction a probe learns from, chooses by and is measured on, and what keeps them apart."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from avff.data.trained_on import trained_groups
from avff.errors import EvaluationError
from avff.evaluation.hazards import find_leaks
from avff.features.layout import FeatureTable
from avff.features.parts import differences
from avff.features.rows import FeatureRow

Label = Literal["is_fake", "video_is_fake", "audio_is_fake", "category"]
REAL_AND_FAKE = ("real", "fake")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled rows of one table.

    Attributes:
        indices_N: of the table's rows.
        labels_N: int64, which of the classes; for a fake label 0 real, 1 fake.
        where: folder and split, for people.
        num_unknown: rows there whose label is not known; they are left out.
    """

    table: FeatureTable
    indices_N: np.ndarray
    labels_N: np.ndarray
    where: str
    num_unknown: int

    @property
    def rows(self) -> list[FeatureRow]:
        return [self.table.rows[index] for index in self.indices_N]

    def values(self, feature: str) -> np.ndarray:
        """Returns (N, D) float32; slices are laid side by side."""
        return np.asarray(self.table.arrays[feature][self.indices_N]).reshape(len(self.indices_N), -1)

    def count(self, classes: Sequence[str]) -> dict[str, Any]:
        """Returns how many rows there are of what, for the report."""
        per_class = np.bincount(self.labels_N, minlength=len(classes)).tolist()
        return {
            "where": self.where,
            "rows": len(self.indices_N),
            "samples": len({(row.dataset, row.key) for row in self.rows}),
            **dict(zip(classes, per_class, strict=True)),
            "unknown": self.num_unknown,
        }


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt, from whom, and on whom it is measured.

    Attributes:
        validation: to choose by; None where there are no such rows of two classes.
        hazards: sentences about what makes the numbers look better than they are.
    """

    classes: tuple[str, ...]
    train: Examples
    validation: Examples | None
    test: Examples
    hazards: list[str]


def make_task(train: FeatureTable, test: FeatureTable | None, label: Label) -> Task:
    """Splits one extraction, or takes two.

    From one: its splits train, val and test. From two: `train` of the first (all its rows where it has no such split)
    with its val, and `test` of the second (or all its rows).

    Raises:
        EvaluationError: a split without rows, rows of one class alone, the same samples in training and test, or two
            extractions of different features.
    """
    if test is not None:
        _check_comparable(train, test)
    learnt = _of_split(train, "train", or_all=test is not None)
    measured = _of_split(test or train, "test", or_all=test is not None)
    chosen = [index for index, row in enumerate(train.rows) if row.split == "val"] if learnt.split else []
    names = _classes(label, learnt)
    classify = _classifier(label, names)
    task = Task(
        classes=names,
        train=_examples(learnt, classify),
        validation=_examples(_Part(train, chosen, "val"), classify),
        test=_examples(measured, classify),
        hazards=[],
    )
    _check_classes(task)
    _check_apart(task)
    if task.validation is not None and len(set(task.validation.labels_N)) < 2:
        task = replace(task, validation=None)
    return replace(task, hazards=_find_hazards(task))


# ------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Part:
    """Rows of a table by index; `split` is empty where all rows were taken."""

    table: FeatureTable
    indices: list[int]
    split: str

    @property
    def where(self) -> str:
        return f"{self.table.path}, {f'split {self.split}' if self.split else 'all rows'}"


def _of_split(table: FeatureTable, split: str, *, or_all: bool) -> _Part:
    indices = [index for index, row in enumerate(table.rows) if row.split == split]
    if indices:
        return _Part(table, indices, split)
    if or_all:
        return _Part(table, list(range(len(table.rows))), "")
    there = ", ".join(sorted({row.split or "(none)" for row in table.rows}))
    raise EvaluationError(
        f"{table.path}: no row of split {split!r}; splits there: {there}; extract with --split all, or pass "
        "--test FEATURES_DIR"
    )


def _classes(label: Label, learnt: _Part) -> tuple[str, ...]:
    if label != "category":
        return REAL_AND_FAKE
    return tuple(sorted({row.category for row in map(learnt.table.rows.__getitem__, learnt.indices) if row.category}))


def _classifier(label: Label, classes: Sequence[str]) -> Callable[[FeatureRow], int | None]:
    if label != "category":
        return lambda row: getattr(row, label)
    return lambda row: classes.index(row.category) if row.category in classes else None


def _examples(part: _Part, classify: Callable[[FeatureRow], int | None]) -> Examples:
    labels = {index: classify(part.table.rows[index]) for index in part.indices}
    known = {index: label for index, label in labels.items() if label is not None}
    return Examples(
        table=part.table,
        indices_N=np.array(list(known), dtype=np.int64),
        labels_N=np.array(list(known.values()), dtype=np.int64),
        where=part.where,
        num_unknown=len(labels) - len(known),
    )


# ------------------------------------------------------------------------------------------- what keeps them apart


def _check_comparable(train: FeatureTable, test: FeatureTable) -> None:
    def meaning(table: FeatureTable) -> dict[str, Any]:
        settings = table.report["settings"]
        return {k: v for k, v in settings.items() if k not in ("features", "format", "split", "shards", "part_samples")}

    if found := differences(meaning(train), meaning(test), f"in {train.path}", f"in {test.path}"):
        raise EvaluationError(f"these features cannot be compared: {'; '.join(found)}; extract both alike")


def _check_classes(task: Task) -> None:
    for examples, purpose in ((task.train, "learns from"), (task.test, "is measured on")):
        counts = Counter(task.classes[label] for label in examples.labels_N)
        if len(counts) < 2:
            found = f"all {len(examples.labels_N)} are {next(iter(counts))}" if counts else "there is none"
            raise EvaluationError(
                f"{examples.where}: a probe {purpose} labelled rows of two classes or more, but {found} "
                f"({examples.num_unknown} of unknown label)"
            )


def _check_apart(task: Task) -> None:
    seen = {(row.dataset, row.key) for part in (task.train, task.validation) if part for row in part.rows}
    doubled = sorted({(row.dataset, row.key) for row in task.test.rows} & seen)
    if doubled:
        raise EvaluationError(
            f"{len(doubled)} samples are both in {task.train.where} and in {task.test.where}, such as {doubled[0][1]!r} of "
            f"dataset {doubled[0][0]!r}; measure on others"
        )


def _find_hazards(task: Task) -> list[str]:
    """Says who of the test rows was seen in training: of the probe, or of the network that gives the features."""
    # Segments of one video belong together even where nobody is named.
    test = [replace(row, group_ids=row.groups) for row in task.test.rows]
    learnt = {group: task.train.where for row in task.train.rows for group in row.groups}
    if task.validation:
        learnt |= {group: task.validation.where for row in task.validation.rows for group in row.groups}
    encoder = trained_groups(task.train.table.report["trained_on"])
    hazards = find_leaks(test, learnt)
    hazards += [f"The network that gives the features: {leak}" for leak in find_leaks(test, encoder.where)]
    return hazards + encoder.notes
