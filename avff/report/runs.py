"""What a report knows about a run: everything its folder says, whether the run has ended or not."""

import itertools
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from avff.errors import CheckpointError
from avff.json_lines import read_lines
from avff.run_folder import METRICS, SYSTEM
from avff.run_lock import holder

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
Records = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder.

    Attributes:
        label: the shortest end of its path that no other run on the page has.
        config: resolved config as plain values, as it stood at the newest start; empty where there is none.
        metrics: lines of metrics.jsonl, oldest first; never empty.
        starts, ledger, decisions: lines of those files.
        system: per host, what was measured there while the run went on.
        exit: content of exit.json; None while it trains, or after a kill.
        holder: host, pid and job of the process that trains there now, if any.
        panels: reconstructions, oldest first.
    """

    path: Path
    label: str
    config: dict[str, Any]
    metrics: Records
    starts: Records
    ledger: Records
    decisions: Records
    system: dict[str, Records]
    exit: dict[str, Any] | None
    holder: dict[str, Any] | None
    panels: list[Path]

    def of_kind(self, kind: str) -> Records:
        """Returns the lines of metrics.jsonl of one kind, `train` or `validation`."""
        return [line for line in self.metrics if line["kind"] == kind]

    @property
    def num_steps(self) -> int | None:
        """Updates of the whole run; None where the config does not say."""
        return self.config.get("optim", {}).get("num_steps")


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads run folders, in the order given, each once.

    Args:
        paths: run folders, or folders of run folders, which stand for all runs in them.

    Returns:
        the runs, and a sentence for each that has no metrics yet and was left out.

    Raises:
        CheckpointError: a path is no run folder (all such are named), a file in one is damaged, or no run has metrics.
    """
    folders = _find(paths)
    labels = _labels(folders)
    runs, left_out = [], []
    for folder in folders:
        metrics = _read_metrics(folder)
        if metrics:
            runs.append(_read_run(folder, labels[folder], metrics))
        else:
            left_out.append(f"{folder}: no line in {METRICS} yet; it is left out")
    if not runs:
        raise CheckpointError(
            f"no metrics in {', '.join(map(str, folders))}: `avff train` writes the first line of {METRICS} after "
            "logging.log_every_steps updates"
        )
    for sentence in left_out:
        logger.warning("%s", sentence)
    return runs, left_out


def _find(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    problems = []
    for path in paths:
        runs = [path] if _is_run(path) else sorted(child for child in path.glob("*/") if _is_run(child))
        if not runs:
            what = "holds no run" if path.is_dir() else "no such folder"
            problems.append(f"{path}: {what} (a run folder has {CONFIG} and {METRICS}); give runs/NAME")
        found.update((run.resolve(), run) for run in runs)
    if problems:
        raise CheckpointError("\n".join(problems))
    return list(found.values())


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() or (path / METRICS).is_file()


def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """Returns the shortest end of each path that tells it from the others."""
    parts = {folder: folder.resolve().parts for folder in folders}
    labels = {}
    for folder, own in parts.items():
        others = [other for there, other in parts.items() if there != folder]
        lengths = itertools.count(1)
        length = next(n for n in lengths if n >= len(own) or all(other[-n:] != own[-n:] for other in others))
        labels[folder] = "/".join(own[-length:])
    return labels


def _read_metrics(folder: Path) -> Records:
    path = folder / METRICS
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not {"kind", "step", "samples_seen"} <= line.keys():
            raise CheckpointError(
                f"{path}: line {number} has no kind, step and samples_seen; avff train wrote no such line"
            )
    return lines


def _read_run(folder: Path, label: str, metrics: Records) -> Run:
    return Run(
        path=folder,
        label=label,
        config=_read_config(folder / CONFIG),
        metrics=metrics,
        starts=read_lines(folder / "starts.jsonl"),
        ledger=read_lines(folder / "ledger.jsonl"),
        decisions=read_lines(folder / "decisions.jsonl"),
        system={path.stem: read_lines(path) for path in sorted((folder / SYSTEM).glob("*.jsonl"))},
        exit=_read_exit(folder / "exit.json"),
        holder=holder(folder),
        panels=sorted((folder / "panels").glob("step-*.png"), key=panel_step),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Plain values, not a Config: a report also shows runs of versions with other keys."""
    try:
        values = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not valid YAML: {error}") from error
    return values if isinstance(values, dict) else {}


def _read_exit(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error


def panel_step(path: Path) -> int:
    """Returns the step in the name of a panel."""
    match = re.fullmatch(r"step-(\d+)", path.stem)
    return int(match[1]) if match else -1
