"""What an importer is given, what it has to return, and the bookkeeping that lets no key get lost.

One importer is one `Source`: it says which files are its own and turns their tensors into ours. What the target's
clip then needs besides (another grid of tokens, other mel statistics) is done to all of them alike by
`avff.models.adapt`.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

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
    """The tensors of a published file; whoever reads one takes it, and what nobody took is an error."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str):
        self.where = where
        self._tensors = dict(tensors)
        self._taken: set[str] = set()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self, prefix: str = "") -> Iterator[str]:
        return (name for name in self._tensors if name.startswith(prefix))

    def depth(self, prefix: str) -> int:
        """Returns how many numbered modules there are below `prefix`, such as `blocks.`."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.names(prefix)})

    def take(self, name: str, *shape: int) -> Tensor:
        """Returns a tensor and counts it as used.

        Args:
            shape: that it has to have; -1 is any size, none is any shape.

        Raises:
            CheckpointError: the file has no such key (names the nearest), or of another shape.
        """
        if name not in self._tensors:
            near = difflib.get_close_matches(name, self._tensors, n=2, cutoff=0.6)
            raise CheckpointError(
                f"{self.where}: missing key {name}" + (f" (nearest there: {', '.join(near)})" if near else "")
            )
        tensor = self._tensors[name]
        if shape and (
            len(shape) != tensor.ndim or any(w not in (-1, s) for w, s in zip(shape, tensor.shape, strict=True))
        ):
            raise CheckpointError(f"{self.where}: key {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        self._taken.add(name)
        return tensor

    def drop(self, conversion: Conversion, prefix: str, why: str) -> None:
        """Counts every key that begins with `prefix` as looked at and left behind; none is fine."""
        for name in self.names(prefix):
            if name not in self._taken:
                self._taken.add(name)
                conversion.dropped[name] = why

    def check_all_taken(self, expected: Collection[str] = ()) -> None:
        """Raises CheckpointError with every key that nobody took, and the nearest of those that were."""
        lost = [name for name in self._tensors if name not in self._taken]
        problems = []
        for name in lost:
            near = difflib.get_close_matches(name, expected or self._taken, n=2, cutoff=0.6)
            problems.append(f"{self.where}: unexpected key {name}" + (f" (nearest: {', '.join(near)})" if near else ""))
        if problems:
            raise CheckpointError("\n".join(problems))


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
        convert: turns the tensors into ours for the networks of a config; has to take every key.
    """

    name: str
    title: str
    licence: str
    non_commercial: bool
    url: str
    recognises: Callable[[Shapes], bool]
    convert: Callable[[SourceKeys, Config], Conversion]
