"""What an importer is given, what it has to return, and the bookkeeping that lets no key get lost.

One importer is one `Source`: it says which files are its own and turns their tensors into ours. What the target's
clip then needs besides (another grid of tokens, other mel statistics) is done to all of them alike by
`avff.models.adapt`.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avff.config import Config, Modality
from avff.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(kw_only=True)
class Conversion:
    """Tensors under our names, and the fate of every key on both sides.

    Attributes:
        tensors: our name -> float32 tensor. Nothing else of our model is held by the source.
        made_of: our name -> keys of the source that it was made of, for people.
        filled: our name -> why it holds a constant: the source has no such parameter (`0: no bias in its qkv`).
        folded: our name -> the input normalisation that was taken up into it, without loss.
        dropped: key of the source -> why it has no place here.
        left_out: our names, or beginnings of names that end in a dot -> why the source cannot fill them. They keep
            their random start. A name that is neither in `tensors` nor here is an error.
        grids: tokens per axis that the position tables in `tensors` are made for, time first: (time, height, width),
            (time, frequency). Of the modalities that the source holds.
        patches: sizes of a patch of each modality, time first; the target's config has to say the same.
        fixed_tables: our name of a position table whose rows lie on no grid -> why; it can be cut, not resampled.
        num_slices: that the tensors of A2V and V2A were made for; None where the source holds neither.
        layer_norm_eps: of the modalities that the source holds; the target's config has to say the same.
        mel: mean and standard deviation that its log-mel input was normalised by (x - mean) / std; None without sound.
        notes: what a reader should know and no key shows.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    grids: dict[Modality, tuple[int, ...]] = field(default_factory=dict)
    patches: dict[Modality, tuple[int, ...]] = field(default_factory=lambda: {"video": (2, 16, 16), "audio": (16, 16)})
    fixed_tables: dict[str, str] = field(default_factory=dict)
    num_slices: int | None = None
    layer_norm_eps: dict[Modality, float] = field(default_factory=dict)
    mel: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: Tensor, made_of: str) -> None:
        """Records a tensor of ours and what it was made of."""
        assert name not in self.tensors, f"{name} is filled twice"
        self.tensors[name] = tensor.float().contiguous()
        self.made_of[name] = made_of

    def fill(self, name: str, tensor: Tensor, why: str) -> None:
        """Records a constant that stands for a parameter which the source does not have."""
        assert name not in self.tensors, f"{name} is filled twice"
        self.tensors[name] = tensor.float().contiguous()
        self.filled[name] = why


class SourceKeys:
    """The tensors of a published file; whoever reads one takes it, and what nobody took is an error.

    A key that is missing or has another shape stops nobody at once: it is written down, zeros stand in for it, and
    `check_all_taken` tells all of them together.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str):
        self.where = where
        self._tensors = dict(tensors)
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: dict[str, tuple[int, ...]] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self, prefix: str = "") -> Iterator[str]:
        return (name for name in self._tensors if name.startswith(prefix))

    def depth(self, prefix: str) -> int:
        """Returns how many numbered modules there are below `prefix`, such as `blocks.`; one that lacks counts, too."""
        numbers = {name.removeprefix(prefix).split(".")[0] for name in self.names(prefix)}
        return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)

    def take(self, name: str, *shape: int, typical: int | None = None) -> Tensor:
        """Returns a tensor and counts it as used; zeros where `check_all_taken` will tell that it is not there.

        Args:
            shape: that it has to have; -1 is any size, none is any shape.
            typical: the size that stands in for -1 where the key is missing.

        Raises:
            CheckpointError: zeros cannot stand in, for no size is known; all problems up to here are told.
        """
        tensor = self._tensors.get(name)
        self._taken.add(name)
        if tensor is not None and _fits(tuple(tensor.shape), shape):
            return tensor
        if tensor is not None:
            self._misshapen[name] = shape
        elif name not in self._missing:
            self._missing.append(name)
        found = tensor.shape if tensor is not None and tensor.ndim == len(shape) else [typical] * len(shape)
        sizes = [size if wanted < 0 else wanted for wanted, size in zip(shape, found, strict=True)]
        known = [size for size in sizes if size is not None]
        if not shape or len(known) < len(sizes):
            raise CheckpointError("\n".join(self._wrong()))
        return torch.zeros(known)

    def drop(self, conversion: Conversion, prefix: str, why: str) -> None:
        """Counts every key that begins with `prefix` as looked at and left behind; none is fine."""
        for name in self.names(prefix):
            if name not in self._taken:
                self._taken.add(name)
                conversion.dropped[name] = why

    def check_all_taken(self) -> None:
        """Raises CheckpointError with every missing and misshapen key, and every one that nobody took."""
        problems = self._wrong()
        for name in self._left():
            # What has its name wrong comes before what is there under its own name.
            near = _nearest(name, self._missing) or _nearest(name, self._taken)
            problems.append(f"{self.where}: unexpected key {name}{near}")
        if problems:
            raise CheckpointError("\n".join(problems))

    def _wrong(self) -> list[str]:
        """Returns what is missing, with the nearest of the keys that nobody took, and what has another shape."""
        left = self._left()
        problems = [f"{self.where}: missing key {name}{_nearest(name, left, ' there')}" for name in self._missing]
        for name, shape in self._misshapen.items():
            wanted = ", ".join("any" if size < 0 else str(size) for size in shape)
            problems.append(
                f"{self.where}: key {name} has shape {list(self._tensors[name].shape)}, expected [{wanted}]"
            )
        return problems

    def _left(self) -> list[str]:
        return [name for name in self._tensors if name not in self._taken]


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if not wanted:
        return True
    return len(shape) == len(wanted) and all(w in (-1, size) for size, w in zip(shape, wanted, strict=True))


def _nearest(name: str, names: Collection[str], where: str = "") -> str:
    """Returns words about what a name may stand for; never a key of another block, which has a place of its own."""
    same_block = [other for other in names if _block(other) == _block(name)]
    near = difflib.get_close_matches(name, same_block, n=2, cutoff=0.6)
    return f" (nearest{where}: {', '.join(near)})" if near else ""


def _block(name: str) -> str:
    """Returns the number of the block that a key belongs to; empty where it belongs to none."""
    return next((part for part in name.split(".") if part.isdecimal()), "")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of published checkpoint.

    Attributes:
        name: what `--format` and sidecars call it, such as `marlin`.
        title: for people, with the year and the reference.
        licence: SPDX identifier of the weights, or words where none is stated.
        non_commercial: whether that licence, or having none, forbids commercial use.
        url: where a user gets it.
        recognises: tells by key names and shapes whether a file is of this kind.
        convert: turns the tensors into ours for the networks of a config; has to take every key, which the function
            `convert` sees to.
    """

    name: str
    title: str
    licence: str
    non_commercial: bool
    url: str
    recognises: Callable[[Shapes], bool]
    convert: Callable[[SourceKeys, Config], Conversion]


def convert(source: Source, tensors: Mapping[str, Tensor], where: str, config: Config) -> Conversion:
    """Turns the tensors of a published file into ours.

    Args:
        where: the file, for messages.

    Raises:
        CheckpointError: keys are missing, misshapen or unexpected: lists all of them, with the nearest names; or the
            file does not fit the networks of `config`.
    """
    keys = SourceKeys(tensors, where)
    conversion = source.convert(keys, config)
    keys.check_all_taken()
    return conversion
