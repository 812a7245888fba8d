"""Weight files of any origin, opened and made fit for one model: what `tools/adapt_weights.py` does below its options."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from avff.config import Config, Modality
from avff.errors import CheckpointError
from avff.files import sha256_of
from avff.models.adapt import Adapted, adapt_conversion, merge, only_modality
from avff.models.adapt_stages import adapt_weights
from avff.models.adapt_tables import fixed_tables_of
from avff.models.importers.reading import read_with_notes
from avff.models.importers.registry import recognise, source_named
from avff.models.importers.source import Source, convert
from avff.models.ledger import KeyLedger
from avff.models.weights import OWN_LICENCE, load_weights, parent_of
from avff.sidecar import config_of, read_sidecar


@dataclass(frozen=True)
class WeightFile:
    """One opened file.

    Attributes:
        source: whose published checkpoint it is; None for a file of ours.
        sidecar: of a file of ours; empty for a published one.
        notes: what else a published file holds.
    """

    path: Path
    tensors: dict[str, Tensor]
    source: Source | None
    sidecar: dict[str, Any]
    notes: Sequence[str] = ()

    @property
    def title(self) -> str:
        """What sidecars call the weights: the run's or the source's name."""
        return self.source.name if self.source else self.sidecar["config"]["name"]

    def as_parent(self) -> dict[str, Any]:
        """Describes the file as the parent of what is made of it."""
        if self.source is None:
            return parent_of(self.path)
        return {
            "file": self.path.name,
            "what": self.source.title,
            "sha256": sha256_of(self.path),
            "licences": [self.source.licence],
            "non_commercial": self.source.non_commercial,
            "url": self.source.url,
            "parents": [],
        }


def is_own(path: Path) -> bool:
    """Whether a file is a weight file of ours: .safetensors whose sidecar holds a config."""
    if path.suffix != ".safetensors" or not path.with_suffix(".json").is_file():
        return False
    return "config" in read_sidecar(path)


def open_weights(path: Path, format_name: str = "") -> WeightFile:
    """Reads a weight file of ours or a published one.

    Args:
        format_name: the `Source` to read a file as; empty finds out.

    Raises:
        CheckpointError: no such file, not whole, a pickle that asks for more than tensors, or of no known source.
    """
    if is_own(path) and not format_name:
        tensors, sidecar = load_weights(path)
        return WeightFile(path, tensors, None, sidecar)
    tensors, notes = read_with_notes(path)
    if format_name:
        return WeightFile(path, tensors, source_named(format_name), {}, notes)
    if "video_encoder.patch_embed.weight" in tensors or "audio_encoder.patch_embed.weight" in tensors:
        raise CheckpointError(
            f"{path}: holds keys of avff, but {path.with_suffix('.json').name}, which says for which config, is not "
            "beside it"
        )
    return WeightFile(path, tensors, recognise(tensors, path), {}, notes)


def adapt_file(file: WeightFile, only: Modality | None, target: Config) -> Adapted:
    """Makes one file fit the model of `target`.

    Args:
        only: take the encoder of one modality, and its decoder where source and target have one.

    Raises:
        CheckpointError: it cannot be made to fit; lists everything that is wrong.
    """
    where = str(file.path)
    if file.source is None:
        config = config_of(file.sidecar, file.path)
        left_out = file.sidecar.get("new", [])
        fixed, notes = fixed_tables_of(file.sidecar, config)
        tensors, ledger = adapt_weights(
            file.tensors, config, target, left_out, only=only, fixed_tables=fixed, where=where
        )
        ledger.notes += [note for note in notes if note.split()[0] in ledger.interpolated]
        return Adapted(where, tensors, ledger)
    conversion = convert(file.source, file.tensors, where, target)
    conversion.notes += file.notes
    if only:
        conversion = only_modality(conversion, only, where, file.tensors)
    adapted = adapt_conversion(conversion, file.source, target, where=where, file_keys=file.tensors)
    return Adapted(where, *adapted)


def adapt_files(
    files: Sequence[tuple[WeightFile, Modality | None]], target: Config
) -> tuple[dict[str, Tensor], KeyLedger]:
    """Joins what several files give to one model.

    Raises:
        CheckpointError: a file cannot be made to fit, or two fill the same key; lists the problems of all files.
    """
    adapted, problems = [], []
    for file, only in files:
        try:
            adapted.append(adapt_file(file, only, target))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return merge(adapted)


def licence_notice(parent: dict[str, Any]) -> str:
    """Returns the sentence about a parent that forbids commercial use; empty where it does not."""
    if not parent["non_commercial"]:
        return ""
    licences = ", ".join(licence for licence in parent["licences"] if licence != OWN_LICENCE)
    return (
        f"licence: {parent['file']} ({parent['what']}) is {licences or 'marked'}, not for commercial use; the same "
        "holds for every weight file made from it, whose sidecars say so"
    )
