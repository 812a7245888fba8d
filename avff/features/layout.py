"""Features on the disk: one array per feature, or side shards that are joined with the source shards by key.

    npy       <feature>.npy (rows, ...) float32, to be mapped into memory
    shards    <shard>.tar with <key>.<feature>.npy (rows of that sample, ...), shards and samples in the source's order
    both      index.jsonl: what each row shows (avff.features.rows); extract.json: where the features come from

The arrays of side shards, laid end to end, are those of the format `npy`. A sample without features is in neither.
"""

import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from avff.errors import EvaluationError
from avff.features.parts import Part, read_part, read_report
from avff.features.rows import FeatureRow, index_text, read_index
from avff.files import durable, write_durably

Format = Literal["npy", "shards"]
INDEX = "index.jsonl"


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """A finished extraction.

    Attributes:
        arrays: per feature (rows, ...) float32.
        report: content of extract.json.
    """

    path: Path
    rows: list[FeatureRow]
    arrays: Mapping[str, np.ndarray]
    report: dict[str, Any]


class _SampleFeatures(NamedTuple):
    shard: str
    key: str
    arrays: dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------- writing


def write_output(output: Path, parts: Sequence[Path], features: Sequence[str], form: Format) -> dict[str, int]:
    """Writes arrays and index from finished parts.

    Returns:
        file name -> bytes.

    Raises:
        EvaluationError: no sample has features.
    """
    about = [read_part(path, arrays=False) for path in parts]
    rows = [row for part in about for row in part.rows]
    if not rows:
        left_out = sum(len(part.undecided) + len(part.unreadable) for part in about)
        reason = next(
            (text for part in about for text in [*map(str, part.undecided.values()), *part.unreadable.values()]), ""
        )
        raise EvaluationError(f"{output}: none of {left_out} samples has features, the first for: {reason}")
    write = _write_arrays if form == "npy" else _write_side_shards
    names = write(output, lambda: map(read_part, parts), features, len(rows))
    write_durably(output / INDEX, index_text(rows).encode())
    return {name: (output / name).stat().st_size for name in [*names, INDEX]}


def _write_arrays(
    output: Path, parts: Callable[[], Iterable[Part]], features: Sequence[str], num_rows: int
) -> list[str]:
    for feature in features:
        with durable(output / f"{feature}.npy") as temporary, temporary.open("wb") as file:
            blocks = (part.arrays[feature] for part in parts() if len(part.rows))
            first = next(blocks)
            shape = (num_rows, *first.shape[1:])
            header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in itertools.chain([first], blocks):
                file.write(block.tobytes())
    return [f"{feature}.npy" for feature in features]


def _write_side_shards(
    output: Path, parts: Callable[[], Iterable[Part]], features: Sequence[str], num_rows: int
) -> list[str]:
    del num_rows
    names = []
    samples = (sample for part in parts() for sample in _samples_of(part))
    for shard, members in itertools.groupby(samples, key=lambda sample: sample.shard):
        with durable(output / shard) as temporary, temporary.open("wb") as file:
            for sample in members:
                for feature in sorted(features):
                    _add_member(file, f"{sample.key}.{feature}.npy", sample.arrays[feature])
            file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        names.append(shard)
    return names


def _samples_of(part: Part) -> Iterator[_SampleFeatures]:
    stop = 0
    for (shard, key), rows in itertools.groupby(part.rows, key=lambda row: (row.shard, row.key)):
        start, stop = stop, stop + len(list(rows))
        yield _SampleFeatures(shard, key, {name: values[start:stop] for name, values in part.arrays.items()})


def _add_member(file: io.BufferedWriter, name: str, values: np.ndarray) -> None:
    """Appends one array as a tar entry; time, owner and rights are fixed, so that equal arrays give equal bytes."""
    content = io.BytesIO()
    np.save(content, values)
    header = tarfile.TarInfo(name)
    header.size = content.tell()
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    file.write(content.getvalue())
    file.write(b"\0" * (-header.size % tarfile.BLOCKSIZE))


# ------------------------------------------------------------------------------------------- reading


def read_features(path: Path) -> FeatureTable:
    """Opens a finished extraction of either format; arrays of the format `npy` are mapped, not read.

    Raises:
        EvaluationError: it is not finished, or its files do not fit each other.
    """
    report = read_report(path)
    rows = read_index(path / INDEX)
    features = list(report["features"])
    is_mapped = report["settings"]["format"] == "npy"
    arrays = (
        {name: _map_array(path / f"{name}.npy") for name in features}
        if is_mapped
        else _read_side_shards(path, [name for name in report["files"] if name.endswith(".tar")], features)
    )
    for name, values in arrays.items():
        if len(values) != len(rows):
            raise EvaluationError(
                f"{path}: {name} has {len(values)} rows, {INDEX} has {len(rows)}; extract the features again"
            )
    return FeatureTable(path=path, rows=rows, arrays=arrays, report=report)


def _map_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}; extract the features again") from error


def _read_side_shards(path: Path, names: Sequence[str], features: Sequence[str]) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {name: [] for name in features}
    for name in names:
        try:
            with tarfile.open(path / name) as tar:
                for member in tar:
                    feature = member.name.split(".")[1]
                    content = tar.extractfile(member)
                    assert content is not None, "side shards hold files alone"
                    found[feature].append(np.load(io.BytesIO(content.read())))
        except (OSError, tarfile.TarError, ValueError) as error:
            raise EvaluationError(f"{path / name}: cannot be read: {error}; extract the features again") from error
    return {feature: np.concatenate(values) for feature, values in found.items()}
