"""Compares two finished runs to the bit: weights, moving average, optimizer, critics, state, metrics, ledger."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avff import run_folder
from avff.engine.metrics_log import TIMING_FIELDS
from avff.files import sha256_of

LAUNCH_STATE = frozenset({"productive_seconds", "first_start_unix", "code_revision"})
"""Of a checkpoint's state, what differs between two launches of one run."""


def differences(
    run_dir: Path,
    reference: Path,
    *,
    folders: tuple[Path, Path] | None = None,
    ignored_ledger_fields: Sequence[str] = (),
) -> list[str]:
    """Returns what differs between the ends of two runs, one line each; nothing when they are equal.

    Args:
        folders: of the run and of the reference, when their data lie in different places: paths below are equal.
        ignored_ledger_fields: of the lines of ledger.jsonl.
    """
    run, other = (
        _End(where, str(folder) if folder else "")
        for where, folder in zip((run_dir, reference), folders or (None, None), strict=True)
    )
    found = [] if run.step == other.step else [f"ends with step {run.step} instead of {other.step}"]
    found += [f"{name}: differs" for name in _different(final_files(run_dir), final_files(reference))]
    found += [f"state.json: {name} differs" for name in _different(run.state(), other.state())]
    for name, ignored in (("metrics.jsonl", TIMING_FIELDS), ("ledger.jsonl", ignored_ledger_fields)):
        lines, expected = run.lines(name, ignored), other.lines(name, ignored)
        if len(lines) != len(expected):
            found.append(f"{name}: {len(lines)} lines, the reference has {len(expected)}")
        pairs = zip(lines, expected, strict=False)
        found += [f"{name}: {line} instead of {wanted}" for line, wanted in pairs if line != wanted]
    return found


def final_files(run_dir: Path) -> dict[str, str]:
    """Returns the sha256 of each file with tensors in the last checkpoint."""
    directory = run_folder.checkpoint_dir(run_dir, run_folder.committed_steps(run_dir)[-1])
    return {str(path.relative_to(directory)): sha256_of(path) for path in directory.rglob("*.safetensors")}


class _End:
    """What a run left; `folder` is taken out of all texts."""

    def __init__(self, run_dir: Path, folder: str):
        self.run_dir, self.folder = run_dir, folder
        self.step = run_folder.committed_steps(run_dir)[-1]

    def state(self) -> dict[str, Any]:
        state = json.loads(self._text(run_folder.checkpoint_dir(self.run_dir, self.step) / run_folder.STATE))
        return {name: value for name, value in state.items() if name not in LAUNCH_STATE}

    def lines(self, name: str, ignored: Sequence[str] | frozenset[str]) -> list[dict[str, Any]]:
        path = self.run_dir / name
        lines = self._text(path).splitlines() if path.exists() else []
        return [{key: value for key, value in json.loads(line).items() if key not in ignored} for line in lines]

    def _text(self, path: Path) -> str:
        return path.read_text().replace(self.folder, "FOLDER") if self.folder else path.read_text()


def _different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
