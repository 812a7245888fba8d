"""Opens published files without running what is in them: .safetensors, or pickles under `weights_only=True`."""

import argparse
import pickle
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy._core import multiarray  # a pickled numpy number names it
from torch import Tensor

from avff.errors import CheckpointError

CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which training scripts put the weights beside optimizer, epoch and arguments."""

PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    (multiarray.scalar, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]
"""Classes that published checkpoints hold beside tensors (arguments, best scores) and that can do nothing but hold."""


GIT_LFS = b"version https://git-lfs"
PICKLE, ZIP = b"\x80", b"PK"
"""What a checkpoint of torch begins with: a pickle's protocol, or the zip archive around it."""


def read_published(path: Path) -> dict[str, Tensor]:
    """Returns the weights of a published file, on the CPU, without the `module.` that DataParallel puts before keys.

    Raises:
        CheckpointError: no such file, not a checkpoint, nothing in it looks like weights, or a pickle that asks for
            more than tensors; that one is not executed.
    """
    return read_with_notes(path)[0]


def read_with_notes(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Returns what `read_published` does, and notes about tensors of the file that are not among the weights."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    weights, notes = _find_weights(content, path)
    return _strip_wrapping(weights), notes


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(_no_checkpoint(path) or f"{path}: not a whole .safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(2)
    if start and not start.startswith((PICKLE, ZIP)):
        raise CheckpointError(_no_checkpoint(path) or f"{path}: not a checkpoint of torch; it begins with {start!r}")
    try:
        with torch.serialization.safe_globals(PLAIN_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is a pickle that asks for more than tensors, and could run any code; it was not opened "
            f"({_what_it_asks_for(error)}). If you trust it, convert it on a machine that holds nothing of value:\n"
            f"  {_conversion_command(path)}\nand bring plain.pt back"
        ) from error
    except (RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a whole torch checkpoint: {error}") from error


def _no_checkpoint(path: Path) -> str:
    """Says what a download brought instead of a checkpoint; empty where that is not known."""
    with path.open("rb") as file:
        start = file.read(256).lstrip()
    if start.startswith(GIT_LFS):
        return f"{path}: is a pointer of git-lfs, not the file; fetch the file with git lfs pull"
    if start.startswith(b"<"):
        return f"{path}: is a web page, not a checkpoint; download it again, from the link of the file itself"
    return ""


def _conversion_command(path: Path) -> str:
    """Returns the command that keeps the tensors of a file alone: of a table, below a container, or of a module."""
    return (
        "python -c \"import sys, torch; c = torch.load(sys.argv[1], weights_only=False, map_location='cpu'); "
        f"w = next((c[k] for k in {CONTAINERS} if k in c), c) if isinstance(c, dict) else c; "
        "w = w.state_dict() if hasattr(w, 'state_dict') else w; "
        'torch.save({k: v for k, v in w.items() if torch.is_tensor(v)}, sys.argv[2])" '
        f"{shlex.quote(path.name)} plain.pt"
    )


def _what_it_asks_for(error: pickle.UnpicklingError) -> str:
    """Returns the line of torch's long message that names the function or class."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0]).split(". ")[0]


def _find_weights(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the one mapping from names to tensors, looking below the usual containers, and what lies beside it."""
    notes: list[str] = []
    while isinstance(content, Mapping):
        weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        inner = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        full = [key for key in inner if _num_tensors(content[key])]
        if len(full) > 1:
            raise CheckpointError(_two_containers(full, path))
        if inner:
            taken = (full or inner)[0]
            beside = {key: _num_tensors(value) for key, value in content.items() if key != taken}
            notes += [f"{key} ({count} tensors) beside {taken} is not taken" for key, count in beside.items() if count]
            content = content[taken]
            continue
        others = [name for name in content if name not in weights]
        if weights and not others:
            return weights, notes
        raise CheckpointError(
            f"{path}: holds no plain table of weights; its keys are {', '.join(map(str, list(content)[:8]))}"
            f"{' ...' if len(content) > 8 else ''}, and weights are looked for there or under {', '.join(CONTAINERS)}"
        )
    raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a table of weights")


def _num_tensors(value: Any) -> int:
    """Counts a tensor, or those of a table; what an optimizer keeps lies deeper."""
    values = value.values() if isinstance(value, Mapping) else [value]
    return sum(isinstance(one, Tensor) for one in values)


def _two_containers(keys: list[str], path: Path) -> str:
    return (
        f"{path}: holds weights under {' and under '.join(keys)}; make a file with one of them:\n"
        "  python -c \"import sys, torch; c = torch.load(sys.argv[1], weights_only=False, map_location='cpu'); "
        f'torch.save(c[sys.argv[3]], sys.argv[2])" {shlex.quote(path.name)} plain.pt {keys[0]}\n'
        "(the file asks for no more than tensors, so that this runs nothing of it)"
    )


def _strip_wrapping(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights
