"""The two baselines that are shown beside every score: metadata alone, and an untrained network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avff.batch import Clip
from avff.config import Config
from avff.data.index import IndexRow
from avff.data.selection import StoredSample
from avff.data.shards import open_directory, read_sample
from avff.data.views import AVView
from avff.evaluation.aggregate import probability
from avff.evaluation.baselines import boosting_logits, probe_logits
from avff.evaluation.compare import mean_auc
from avff.evaluation.rows import Row, Table, write_jsonl
from avff.evaluation.summary import summarize
from avff.files import write_durably
from avff.inference.detector import choose_device
from avff.inference.evaluate import describe_sample, select_split
from avff.inference.features import RandomFeatures, feature_matrix, metadata_features
from avff.inference.loading import map_samples
from avff.progress import progress_bar

METADATA_ONLY = "metadata_only"
RANDOM_FEATURES = "random_features"


class ClipFeatures(NamedTuple):
    """One sample as the baselines see it.

    Attributes:
        metadata: `avff.inference.features.metadata_features`.
        tokens_SD: mean tokens of its first window per untrained network; None where the sample has no window.
    """

    row: IndexRow
    metadata: dict[str, float]
    tokens_SD: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What `evaluate_baselines` found.

    Attributes:
        metadata_only, random_features: {value, low, high, reason} of the AUC; the latter with `per_seed`.
        row_paths: rows.jsonl files that `evaluate(compare=...)` takes: metadata, and the first seed's probe.
    """

    metadata_only: dict[str, Any]
    random_features: dict[str, Any]
    row_paths: list[Path]


def evaluate_baselines(
    config: Config,
    shards: Sequence[Path],
    output: Path,
    *,
    train_split: str = "train",
    test_split: str = "test",
    num_seeds: int = 5,
    device: str = "auto",
    batch_size: int = 16,
    num_workers: int = 2,
    progress: bool = True,
) -> Baselines:
    """Trains both baselines on one split, scores the other and writes rows and baselines.json.

    Args:
        config: clip and model of the untrained network.
        shards: directories that hold both splits.

    Raises:
        ShardError: a directory or sample is broken; the baselines leave nothing out.
        EvaluationError: a split is empty, or the training clips are all of one class.
    """
    directories = [open_directory(path) for path in shards]
    networks = RandomFeatures(config, range(num_seeds), choose_device(device))
    read = partial(_read_features, networks=networks, batch_size=batch_size, num_workers=num_workers, progress=progress)
    train = [one for one in read(select_split(directories, train_split)) if _is_usable(one)]
    test = read(select_split(directories, test_split))
    metadata_rows = _metadata_rows(config.name, train, test)
    probe_rows = [_probe_rows(config.name, train, test, seed) for seed in range(num_seeds)]
    paths = [output / f"{METADATA_ONLY}.jsonl", *(output / f"{RANDOM_FEATURES}_{s}.jsonl" for s in range(num_seeds))]
    for path, rows in zip(paths, [metadata_rows, *probe_rows], strict=True):
        write_jsonl(path, rows)
    summary = summarize(Table(rows=metadata_rows, expected=len(test)))
    random_features = mean_auc(probe_rows)
    report = {METADATA_ONLY: summary, RANDOM_FEATURES: random_features}
    write_durably(output / "baselines.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    return Baselines(metadata_only=summary["overall"]["auc"], random_features=random_features, row_paths=paths[:2])


def _read_features(
    samples: Sequence[StoredSample], *, networks: RandomFeatures, batch_size: int, num_workers: int, progress: bool
) -> list[ClipFeatures]:
    loaded = map_samples(samples, partial(_load, networks.view), num_workers=num_workers)
    shown = iter(progress_bar(loaded, total=len(samples), unit="clip", description="baselines", shown=progress))
    found: list[ClipFeatures] = []
    while chunk := list(islice(shown, batch_size)):
        clips = [clip for _, clip in chunk if clip is not None]
        tokens = iter(networks(clips).swapaxes(0, 1) if clips else ())
        for metadata, clip in chunk:
            found.append(ClipFeatures(samples[len(found)].row, metadata, None if clip is None else next(tokens)))
    return found


def _load(view: AVView, stored: StoredSample) -> tuple[dict[str, float], Clip | None]:
    sample = read_sample(*stored)
    return metadata_features(sample), next(iter(view.evaluation_clips(sample)), None)


def _is_usable(clip: ClipFeatures) -> bool:
    return clip.tokens_SD is not None and clip.row.is_fake is not None


def _labels(train: Sequence[ClipFeatures]) -> np.ndarray:
    return np.array([clip.row.is_fake for clip in train], dtype=np.int64)


def _metadata_rows(run: str, train: Sequence[ClipFeatures], test: Sequence[ClipFeatures]) -> list[Row]:
    names = sorted({name for clip in train for name in clip.metadata})
    matrices = [feature_matrix([clip.metadata for clip in clips], names) for clips in (train, test)]
    logits_N = boosting_logits(matrices[0], _labels(train), matrices[1])
    return [_row(run, METADATA_ONLY, clip, float(logit)) for clip, logit in zip(test, logits_N, strict=True)]


def _probe_rows(run: str, train: Sequence[ClipFeatures], test: Sequence[ClipFeatures], seed: int) -> list[Row]:
    scored = [clip for clip in test if clip.tokens_SD is not None]
    train_ND = np.stack([clip.tokens_SD[seed] for clip in train if clip.tokens_SD is not None])
    test_ND = np.stack([clip.tokens_SD[seed] for clip in scored if clip.tokens_SD is not None])
    logits = dict(
        zip([c.row.key for c in scored], probe_logits(train_ND, _labels(train), test_ND).tolist(), strict=True)
    )
    return [_row(run, f"{RANDOM_FEATURES}_{seed}", clip, logits.get(clip.row.key)) for clip in test]


def _row(run: str, detector: str, clip: ClipFeatures, logit: float | None) -> Row:
    """Returns the row of one test clip; what the networks cannot read is undecided for both baselines alike."""
    described = describe_sample(clip.row)
    if clip.tokens_SD is None:
        logit = None
        described["status"] = described["status"] if described["status"] != ["OK"] else ["TOO_SHORT"]
    return Row(
        run=run,
        detector=detector,
        checkpoint_sha256=[],
        window_aggregation="whole_clip" if detector == METADATA_ONLY else "first_window",
        fake_logit=logit,
        fake_probability=None if logit is None else probability(logit),
        **described,
    )
