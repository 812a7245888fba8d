"""What can make a number look better than the detector is; shown beside every result (docs/method.md)."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from avff.evaluation import bootstrap, metrics
from avff.evaluation.rows import Row

FEW_GROUPS = 20
STRONG_IMBALANCE = 10


class ShowsPeople(Protocol):
    """A row of results or of features, as far as leaks go."""

    @property
    def group_ids(self) -> list[str]: ...


def find_hazards(rows: Sequence[Row], *, seed: int = 0) -> list[str]:
    """Returns one sentence per hazard that the rows show; an empty list says that none was found."""
    labelled = [row for row in rows if row.decided and row.is_fake is not None]
    if not labelled:
        return ["No clip has both a score and a label, so nothing can be measured."]
    found = [_grouping(labelled), _imbalance(labelled), _undecided(rows), _silence(labelled, seed)]
    return [sentence for sentence in found if sentence]


def find_leaks(test: Sequence[ShowsPeople], training_groups: Mapping[str, str]) -> list[str]:
    """Returns a sentence when a person or original of a test clip was trained on.

    Args:
        training_groups: {group id: where it was trained on}.
    """
    shared = sorted({name for row in test for name in row.group_ids} & training_groups.keys())
    if not shared:
        return []
    clips = sum(any(name in training_groups for name in row.group_ids) for row in test)
    return [
        f"Leak: {clips} of {len(test)} clips show a person or original that was trained on, such as {shared[0]!r} "
        f"({training_groups[shared[0]]}). The numbers measure memory as well as detection."
    ]


def _grouping(labelled: Sequence[Row]) -> str | None:
    unnamed = sum(not row.group_ids for row in labelled)
    if unnamed:
        return (
            f"{unnamed} of {len(labelled)} clips name no person or original (group_ids), so nobody can tell whether "
            "training saw the same people, and intervals treat every video as independent."
        )
    groups = bootstrap.make_groups([row.group_ids for row in labelled])
    if groups.method == "crossed_ids":
        return (
            f"Persons are swapped so densely that clips form no separate groups; {len(groups.unit_ids)} ids were "
            "resampled one by one."
        )
    if len(groups.unit_ids) < FEW_GROUPS:
        return f"Only {len(groups.unit_ids)} separate groups of people; intervals from so few are too narrow."
    return None


def _imbalance(labelled: Sequence[Row]) -> str | None:
    num_fake = sum(row.is_fake or 0 for row in labelled)
    num_real = len(labelled) - num_fake
    if min(num_fake, num_real) and max(num_fake, num_real) >= STRONG_IMBALANCE * min(num_fake, num_real):
        return (
            f"{num_real} real and {num_fake} fake clips: accuracy and AP of the larger class say little at this ratio; "
            "read AUC, balanced accuracy and AP of the smaller class."
        )
    return None


def _undecided(rows: Sequence[Row]) -> str | None:
    undecided = [row for row in rows if not row.decided]
    if not undecided:
        return None
    num_fake = sum(row.is_fake == 1 for row in undecided)
    return f"{len(undecided)} of {len(rows)} clips are undecided ({num_fake} of them fake) and take no part in the metrics."


def _silence(labelled: Sequence[Row], seed: int) -> str | None:
    """Says so when the silence before the first sound separates the classes by itself."""
    measured = [row for row in labelled if row.leading_silence_seconds is not None]
    labels_N = np.array([row.is_fake for row in measured], dtype=np.int64)
    if metrics.undefined_reason(labels_N):
        return None
    silence_N = np.array([row.leading_silence_seconds for row in measured], dtype=np.float64)
    groups = bootstrap.make_groups([row.group_ids or [row.source_key] for row in measured])
    auc = metrics.roc_auc(silence_N, labels_N)
    found = bootstrap.interval(metrics.weighted_roc_auc, silence_N, labels_N, groups, seed=seed)
    if found.low is None or found.high is None or found.low <= 0.5 <= found.high:
        return None
    return (
        f"Leading silence alone tells real from fake with AUC {max(auc, 1 - auc):.2f} "
        f"({'fakes' if auc > 0.5 else 'reals'} start with more of it): a detector may have learned that."
    )
