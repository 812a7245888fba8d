"""What lies in a checkpoint folder: fragments by parameter name, their listing, and one canonical state to read.

Each rank writes what it owns of each parameter, a run of the flattened tensor, under the parameter's name; the files
together are one canonical state (per parameter fp32 weights, both Adam moments, moving average), whatever ZeRO
stage and number of ranks wrote them. `CanonicalState` reads it, whole or by runs, without DeepSpeed.
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avff import __version__, run_folder
from avff.errors import CheckpointError
from avff.files import sha256_of, sync, write_durably
from avff.models.weights import save_tensors

WEIGHTS = "weights"
EMA = "ema"

Listing = dict[str, dict[str, Any]]
"""Path below the checkpoint's folder -> its `bytes` and `sha256`."""


class Piece(NamedTuple):
    """A run of one flattened parameter.

    Attributes:
        name: of the parameter.
        start: of the run.
        shape: of the whole parameter.
        tensors: `weights`, `exp_avg`, `exp_avg_sq`, `ema`: 1-D, fp32, all of the run's length.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    tensors: dict[str, Tensor]


# ------------------------------------------------------------------------------------------- writing


def write_pieces(path: Path, pieces: Iterable[Piece], num_updates: int) -> None:
    """Writes one rank's part of a state to the disk; equal states give equal files."""
    tensors: dict[str, Tensor] = {}
    starts, shapes = {}, {}
    for piece in pieces:
        starts[piece.name], shapes[piece.name] = piece.start, list(piece.shape)
        tensors |= {f"{key}/{piece.name}": tensor for key, tensor in piece.tensors.items()}
    # One entry: safetensors writes several in random order.
    about = json.dumps({"num_updates": num_updates, "starts": starts, "shapes": shapes})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, {"fragments": about})
    sync(path)
    sync(path.parent)


def list_files(directory: Path, paths: Iterable[Path]) -> Listing:
    """Describes finished files for `files.json`."""
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }


def commit(unfinished: Path, final: Path, listing: Listing) -> None:
    """Turns a folder whose files are all on the disk into a checkpoint, durably."""
    sync(unfinished)
    write_durably(unfinished / run_folder.FILES, (json.dumps(listing, indent=1, sort_keys=True) + "\n").encode())
    write_durably(unfinished / run_folder.COMMIT, f"{sha256_of(unfinished / run_folder.FILES)}\n".encode())
    unfinished.rename(final)
    sync(final.parent)
    sync(final.parent.parent)  # `checkpoints/` itself may be new


# ------------------------------------------------------------------------------------------- reading


class CanonicalState:
    """The state of one trainable in a checkpoint folder, put together from every rank's file.

    Attributes:
        folder: `step-N/model` or `step-N/critics`.
        num_updates: that the optimizer had applied.
        keys: kinds of tensors, `weights` first.
        shapes: of each parameter, in the module's order as far as one file shows it.

    Raises:
        CheckpointError: no file is there, or one is not what its name says.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._pieces: dict[str, list[tuple[Any, int]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder}: no .safetensors file in it, so no state to read")
        keys: set[str] = set()
        for path in paths:
            with _named(path):
                file = safe_open(path, framework="pt")
                about = json.loads((file.metadata() or {})["fragments"])
                keys |= {name.partition("/")[0] for name in file.keys()}
            if lacking := {"num_updates", "starts", "shapes"} - about.keys():
                raise CheckpointError(
                    f"{path}: does not record {', '.join(sorted(lacking))}; an older version of avff wrote it, whose "
                    f"optimizer state this one ({__version__}) cannot read. Its weights can be: see tools/checkpoint.py "
                    "export, or train on with the version that state.json names"
                )
            self.num_updates: int = about["num_updates"]
            for name, start in about["starts"].items():
                self._pieces.setdefault(name, []).append((file, start))
            self.shapes |= {name: tuple(shape) for name, shape in about["shapes"].items()}
        self.keys = sorted(keys, key=lambda key: (key != WEIGHTS, key))

    def read_into(self, key: str, name: str, start: int, view: Tensor) -> None:
        """Fills a 1-D view with the run of a parameter that begins at `start`.

        Raises:
            CheckpointError: the files do not hold all of it.
        """
        stop, filled = start + len(view), 0
        for file, piece_start in self._pieces.get(name, []):
            with _named(self.folder):
                piece = file.get_slice(f"{key}/{name}")
                first, last = max(start, piece_start), min(stop, piece_start + piece.get_shape()[0])
                if first < last:
                    with torch.no_grad():
                        view[first - start : last - start] = piece[first - piece_start : last - piece_start]
                    filled += last - first
        if filled != len(view):
            raise CheckpointError(
                f"{self.folder}: holds {filled} of the {len(view)} values of {key} that parameter {name} "
                f"[{start}, {stop}) needs; it belongs to another model"
            )

    def read(self, key: str, name: str) -> Tensor:
        """Returns a whole parameter's tensor in its shape."""
        tensor = torch.empty(self.shapes[name])
        self.read_into(key, name, 0, tensor.view(-1))
        return tensor

    def read_all(self, key: str) -> dict[str, Tensor]:
        return {name: self.read(key, name) for name in self.shapes}


class Comparison(NamedTuple):
    """One tensor of two states.

    Attributes:
        key: `weights`, `exp_avg`, `exp_avg_sq` or `ema`.
        name: of the parameter.
        num_values: that differ; None where one state lacks the tensor or holds it in another shape.
        max_difference: the largest, absolute; NaN where one is NaN and the other is not, or where shapes differ.
    """

    key: str
    name: str
    num_values: int | None
    max_difference: float

    @property
    def is_equal(self) -> bool:
        return self.num_values == 0


def compare(one: CanonicalState, other: CanonicalState) -> Iterator[Comparison]:
    """Compares two states tensor by tensor, by name; equal means the same bits, NaN included."""
    names = dict.fromkeys([*one.shapes, *other.shapes])
    for key in dict.fromkeys([*one.keys, *other.keys]):
        for name in names:
            if key in one.keys and key in other.keys and one.shapes.get(name) == other.shapes.get(name):
                yield _compare(key, name, one.read(key, name), other.read(key, name))
            else:
                yield Comparison(key, name, None, math.nan)


def _compare(key: str, name: str, one: Tensor, other: Tensor) -> Comparison:
    differs = one.view(torch.int32) != other.view(torch.int32)
    difference = (one[differs].double() - other[differs].double()).abs()
    return Comparison(key, name, int(differs.sum()), difference.max().item() if len(difference) else 0.0)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what safetensors raises into an error that names the file."""
    try:
        yield
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: not a whole fragment file: {error}") from error
