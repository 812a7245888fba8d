"""Work that survives its process: finished parts of an extraction, and the settings that they were made with.

    output/.parts/settings.json               what the parts are features of
    output/.parts/part-000012.safetensors     one part: its arrays, and its rows and what was left out as metadata
    output/extract.json                       written last: the extraction is complete

A part is a run of samples that no batch crosses, so its numbers do not depend on where an earlier call stopped.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from avff.errors import EvaluationError
from avff.features.rows import FeatureRow
from avff.files import durable, write_durably

PARTS = ".parts"
SETTINGS = "settings.json"
REPORT = "extract.json"


@dataclass
class Part:
    """Features of one run of samples.

    Attributes:
        arrays: per feature (rows, ...) float32.
        undecided: {key: status} of samples without a window.
        unreadable: {key: reason}.
    """

    arrays: dict[str, np.ndarray]
    rows: list[FeatureRow] = field(default_factory=list)
    undecided: dict[str, list[str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def part_path(output: Path, number: int) -> Path:
    return output / PARTS / f"part-{number:06d}.safetensors"


def write_part(path: Path, part: Part) -> None:
    """Writes a part, whole or not at all."""
    about = {
        "rows": [asdict(row) for row in part.rows],
        "undecided": part.undecided,
        "unreadable": part.unreadable,
    }
    with durable(path) as temporary:
        safetensors.numpy.save_file(part.arrays, temporary, metadata={"about": json.dumps(about)})


def read_part(path: Path, *, arrays: bool = True) -> Part:
    """Reads a part; without `arrays` only what is known of its rows."""
    with safetensors.safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["about"])
        values = {name: file.get_tensor(name) for name in file.keys()} if arrays else {}
    return Part(values, [FeatureRow(**row) for row in about["rows"]], about["undecided"], about["unreadable"])


# ------------------------------------------------------------------------------------------- settings


def read_report(output: Path) -> dict[str, Any]:
    """Returns extract.json; raises EvaluationError where the folder holds no finished extraction."""
    path = output / REPORT
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        unfinished = (output / PARTS).is_dir()
        way_out = "start the same avff extract again, it goes on" if unfinished else "make one with avff extract"
        raise EvaluationError(f"{output}: holds no finished extraction ({REPORT}); {way_out}") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: not valid JSON: {error}; extract the features again") from error


def check_folder(output: Path, settings: Mapping[str, Any]) -> bool:
    """Returns whether the folder holds all of this very extraction already; False where there is work to do.

    Raises:
        EvaluationError: it holds features made otherwise, other files, or a finished extraction that was damaged.
    """
    if (output / REPORT).is_file():
        report = read_report(output)
        _check_same(report["settings"], settings, output)
        _check_files(output, report["files"])
        return True
    stored = output / PARTS / SETTINGS
    if stored.is_file():
        _check_same(json.loads(stored.read_text(encoding="utf-8")), settings, output)
    elif output.is_dir() and (foreign := sorted(path.name for path in output.iterdir() if path.name != PARTS)):
        raise EvaluationError(
            f"{output}: holds {', '.join(foreign[:3])} and no extraction; give --output an empty or new folder"
        )
    return False


def begin(output: Path, settings: Mapping[str, Any]) -> None:
    """Records what is extracted here, and removes what a killed process left half written."""
    for folder in (output, output / PARTS):
        for torn in folder.glob(".*.partial"):
            torn.unlink()
    write_durably(output / PARTS / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], there: str, here: str) -> list[str]:
    """Returns every setting in which two extractions differ, with both values and where each is from."""
    keys = dict.fromkeys([*ours, *theirs])
    return [
        f"{key} {theirs.get(key)!r} {there}, {ours.get(key)!r} {here}"
        for key in keys
        if theirs.get(key) != ours.get(key)
    ]


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: Path) -> None:
    if differing := differences(theirs, ours, "there", "now"):
        raise EvaluationError(
            f"{where}: holds features made otherwise: {'; '.join(differing)}; give another --output, or delete the folder"
        )


def _check_files(output: Path, files: Mapping[str, int]) -> None:
    for name, expected in files.items():
        path = output / name
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            there = "is missing" if found is None else f"has {found} bytes instead of {expected}"
            raise EvaluationError(f"{path}: {there}; delete {output} and extract the features again")
