"""`avff extract`: a checkpoint and shard directories in; features per clip, slice or window out."""

import itertools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avff import __version__
from avff.batch import Clip
from avff.building.locks import hold
from avff.data.selection import StoredSample, check_unshared_keys
from avff.data.shards import ShardDirectory, open_directory
from avff.data.trained_on import inherited_records
from avff.data.views import AVView
from avff.data.windows import check_rate
from avff.errors import ConfigError
from avff.features.layout import Format, write_output
from avff.features.network import Extractor, Feature, load_network
from avff.features.parts import PARTS, REPORT, Part, begin, check_folder, part_path, read_part, read_report, write_part
from avff.features.rows import Level, MainTrackView, Tracks, Window, as_window, make_row, reduce_windows, row_ranges
from avff.files import sha256_of, write_durably
from avff.inference.detector import choose_device
from avff.inference.evaluate import select_split
from avff.inference.loading import LoadedSample, load_samples
from avff.models.weights import NOT_IN_WEIGHTS
from avff.preprocess import Preprocess
from avff.progress import progress_bar
from avff.run_folder import CheckpointRef, resolve_checkpoint
from avff.sidecar import read_sidecar
from avff.strict_yaml import flatten, to_dict

log = logging.getLogger(__name__)

ALL_SPLITS = "all"
PART_SAMPLES = 64
"""Samples per part: what is lost when the process is killed."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Where features lie and what they are of.

    Attributes:
        report: content of extract.json.
        was_there: an earlier call had finished it, so nothing was done.
    """

    output: Path
    report: dict[str, Any]
    was_there: bool


def extract(
    checkpoint: str,
    shards: Sequence[Path],
    output: Path,
    *,
    features: Sequence[Feature] = ("video", "audio"),
    split: str = ALL_SPLITS,
    level: Level = "clip",
    tracks: Tracks = "main",
    form: Format = "npy",
    device: str = "auto",
    batch_size: int = 8,
    num_workers: int = 2,
    part_samples: int = PART_SAMPLES,
    progress: bool = True,
) -> Extraction:
    """Writes features of every sample of a split; started again, it goes on after the last finished part.

    Windows are those of evaluation: at most half a clip apart, from a track's start to its end. Batch size and workers
    change no number by more than rounding does (1e-6 of a token's scale in float32); an interrupted extraction that
    goes on with the same batch size writes the same bytes as one that was not.

    Args:
        checkpoint: `RUN[:best|last|step-N][:raw]`, a model folder or a `.safetensors` file, of any stage.
        shards: directories that tools/make_shards.py wrote; one of them for the format `shards`.
        features: mean tokens of the encoders (`video`, `audio`), or as predicted from the other modality
            (`a2v`, `v2a`).
        split: `all` reads every sample.
        level: a row per sample (mean over its slices and windows), per window (mean over its slices), or per window
            with its slices kept apart.
        tracks: `main` reads one face per sample (avff.features.rows), `all` gives each face rows of its own.
        form: see avff.features.layout.

    Raises:
        CheckpointError: no such checkpoint, or it does not hold what the features take.
        ShardError: a directory is missing or incomplete, or two of them share a key.
        EvaluationError: an empty split, no sample with features, or a folder that holds other features.
        ConfigError: options that do not fit each other, or another process extracts into this folder.
    """
    features = tuple(dict.fromkeys(features))
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; a forward pass takes at least 1 window")
    reference = resolve_checkpoint(checkpoint)
    directories = _open(shards, form)
    samples = _select(directories, split)
    clip = reference.config.clip
    for directory, row in samples:
        check_rate(row.frames_per_second, clip, f"{directory.path}: sample {row.key!r}")
    settings = {
        "checkpoint_sha256": sha256_of(reference.weights_path),
        "features": list(features),
        "level": level,
        "tracks": tracks,
        "format": form,
        "split": split,
        "shards": [directory.fingerprint for directory in directories],
        "part_samples": part_samples,
        "avff": __version__,  # parts of two versions are not mixed
        **_network_settings(reference),
    }
    if check_folder(output, settings):
        shutil.rmtree(output / PARTS, ignore_errors=True)
        return Extraction(output=output, report=read_report(output), was_there=True)
    network = load_network(reference, features)
    view = MainTrackView(clip) if tracks == "main" else AVView(clip)
    chosen = choose_device(device)
    extractor = Extractor(network, view, Preprocess(clip, reference.config.data.augment), chosen)
    with hold(output / PARTS, shared=False):
        # Another process may have finished it while this one waited.
        was_there = check_folder(output, settings)
        if not was_there:
            begin(output, settings)
            parts = _PartWriter(extractor, level, batch_size, output).write(
                samples, part_samples, num_workers, reference.config.faults.decode_timeout_seconds, progress
            )
            files = write_output(output, parts, features, form)
            report = _describe(reference, directories, samples, parts, settings, files)
            write_durably(output / REPORT, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        shutil.rmtree(output / PARTS)
    return Extraction(output=output, report=read_report(output), was_there=was_there)


def _open(shards: Sequence[Path], form: Format) -> list[ShardDirectory]:
    if form == "shards" and len(shards) > 1:
        raise ConfigError(
            f"--format shards mirrors one shard directory, got {len(shards)}; extract each into its own --output"
        )
    return [open_directory(path) for path in shards]


def _select(directories: Sequence[ShardDirectory], split: str) -> list[StoredSample]:
    if split != ALL_SPLITS:
        return select_split(directories, split)
    samples = [StoredSample(directory, row) for directory in directories for row in directory.rows]
    check_unshared_keys(samples)
    return samples


def _network_settings(reference: CheckpointRef) -> dict[str, Any]:
    """Returns what a changed sidecar or config.yaml would make the same tensors mean."""
    values = flatten(reference.config)
    return {k: v for k, v in values.items() if k.startswith(("clip.", "model.")) and k not in NOT_IN_WEIGHTS}


# ------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _PartWriter:
    """Computes the parts that are not there yet."""

    extractor: Extractor
    level: Level
    batch_size: int
    output: Path

    def write(
        self,
        samples: Sequence[StoredSample],
        part_samples: int,
        num_workers: int,
        timeout_seconds: float,
        progress: bool,
    ) -> list[Path]:
        """Returns the files of all parts, in order."""
        cuts = [samples[start : start + part_samples] for start in range(0, len(samples), part_samples)]
        paths = [part_path(self.output, number) for number in range(len(cuts))]
        missing = [(cut, path) for cut, path in zip(cuts, paths, strict=True) if not path.is_file()]
        remaining = [sample for cut, _ in missing for sample in cut]
        loaded = load_samples(remaining, self.extractor.view, num_workers=num_workers, timeout_seconds=timeout_seconds)
        there = len(samples) - len(remaining)
        bar = progress_bar(
            loaded, total=len(samples), initial=there, unit="clip", description="extract", shown=progress
        )
        stream = iter(bar)
        for cut, path in missing:
            write_part(path, self._compute(cut, itertools.islice(stream, len(cut))))
        bar.close()
        return paths

    def _compute(self, samples: Sequence[StoredSample], loaded: Iterable[LoadedSample]) -> Part:
        """Returns the features of a run of samples; batches begin with its first window and end with its last."""
        described: list[tuple[list[Window], str | None]] = []
        batches: list[dict[str, np.ndarray]] = []
        waiting: list[Clip] = []
        for one in loaded:
            described.append(([as_window(clip) for clip in one.windows], one.problem))
            waiting += one.windows
            while len(waiting) >= self.batch_size:
                batches.append(self.extractor(waiting[: self.batch_size]))
                del waiting[: self.batch_size]
        if waiting:
            batches.append(self.extractor(waiting))
        names = self.extractor.network.features if batches else ()
        values_WSD = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
        return self._make_part(samples, described, values_WSD)

    def _make_part(
        self,
        samples: Sequence[StoredSample],
        described: Sequence[tuple[list[Window], str | None]],
        values_WSD: dict[str, np.ndarray],
    ) -> Part:
        part = Part(arrays={})
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in values_WSD}
        first = 0
        for (_, row), (windows, problem) in zip(samples, described, strict=True):
            if problem is not None:
                part.unreadable[row.key] = problem
                log.warning("%s", problem)
            elif not windows:
                # Long enough to be built, too short for this model's window.
                part.undecided[row.key] = list(row.status) if row.status != ("OK",) else ["TOO_SHORT"]
            for start, stop in row_ranges(windows, self.level):
                part.rows.append(make_row(row, windows[start:stop], self.extractor.view.clip.duration_seconds))
                for name, values in values_WSD.items():
                    arrays[name].append(reduce_windows(values[first + start : first + stop], self.level))
            first += len(windows)
        part.arrays = {name: np.stack(values) for name, values in arrays.items()}
        return part


# ------------------------------------------------------------------------------------------- report


def _describe(
    reference: CheckpointRef,
    directories: Sequence[ShardDirectory],
    samples: Sequence[StoredSample],
    parts: Sequence[Path],
    settings: dict[str, Any],
    files: dict[str, int],
) -> dict[str, Any]:
    """Returns the content of extract.json."""
    about = [read_part(path, arrays=False) for path in parts]
    undecided = {key: status for part in about for key, status in part.undecided.items()}
    unreadable = {key: reason for part in about for key, reason in part.unreadable.items()}
    sidecar = read_sidecar(reference.weights_path)
    return {
        "checkpoint": str(reference.weights_path),
        "checkpoint_sha256": settings["checkpoint_sha256"],
        "run": reference.config.name,
        "stage": reference.config.stage,
        "step": reference.step,
        "licences": sidecar.get("licences", []),
        "non_commercial": sidecar.get("non_commercial", False),
        "features": settings["features"],
        "level": settings["level"],
        "num_rows": sum(len(part.rows) for part in about),
        "num_samples": len(samples) - len(undecided) - len(unreadable),
        "expected": len(samples),
        "undecided": {
            "count": len(undecided),
            "by_status": dict(sorted(Counter(code for status in undecided.values() for code in status).items())),
            "samples": undecided,
        },
        "unreadable": {"count": len(unreadable), "samples": unreadable},
        "shards": {str(d.path): {"samples": len(d.rows), "fingerprint": d.fingerprint} for d in directories},
        "settings": settings,
        "files": files,
        "config": to_dict(reference.config),
        "trained_on": inherited_records(reference.state, reference.weights_path),
        "avff": __version__,
    }


def describe_extraction(extraction: Extraction) -> str:
    """Returns what happened, for people."""
    report = extraction.report
    left_out = [f"{count} {status}" for status, count in report["undecided"]["by_status"].items()]
    if report["unreadable"]["count"]:
        left_out.append(f"{report['unreadable']['count']} unreadable")
    counts = f"{report['num_rows']} rows of {', '.join(report['features'])} per {report['level']}"
    lines = [f"{extraction.output}: {counts}, from {report['num_samples']} of {report['expected']} samples"]
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}; each is named with its reason in {REPORT}")
    if report["unreadable"]["count"]:
        lines.append(f"to read the unreadable ones again, delete {extraction.output} and extract anew")
    if report["non_commercial"]:
        lines.append(f"the weights are licensed for non-commercial use only: {', '.join(report['licences'])}")
    if extraction.was_there:
        lines.append("everything was there already, nothing was done")
    return "\n".join(lines)
