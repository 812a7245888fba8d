"""All sources, and which of them a file is of."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from avff.errors import CheckpointError
from avff.models.importers.audiomae import AUDIOMAE
from avff.models.importers.cav_mae import CAV_MAE
from avff.models.importers.havic import HAVIC
from avff.models.importers.marlin import MARLIN
from avff.models.importers.open_avff import OPEN_AVFF
from avff.models.importers.source import Source
from avff.models.importers.videomae import VIDEOMAE
from avff.models.importers.vit import MAE, TIMM_VIT, TIMM_VIT_HALF

SOURCES: tuple[Source, ...] = (
    OPEN_AVFF,
    HAVIC,
    CAV_MAE,
    AUDIOMAE,
    MARLIN,
    VIDEOMAE,
    MAE,
    TIMM_VIT,
    TIMM_VIT_HALF,
)
"""In the order in which they are asked; the more particular ones first."""


def source_named(name: str) -> Source:
    """Returns the source that `--format` names; raises CheckpointError with the names there are."""
    for source in SOURCES:
        if source.name == name:
            return source
    raise CheckpointError(f"format {name!r} is unknown; choose one of {', '.join(source.name for source in SOURCES)}")


def recognise(tensors: Mapping[str, Tensor], path: Path) -> Source:
    """Returns the source whose keys and shapes these are.

    Raises:
        CheckpointError: none, or several; the message shows some of the keys.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = [source for source in SOURCES if source.recognises(shapes)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:5])
    if found:
        choices = "\n".join(f"  {source.name}: {source.title}" for source in found)
        raise CheckpointError(
            f"{path}: could be of several sources; say which with --format\n{choices}\nIt begins with {shown}"
        )
    names = ", ".join(source.name for source in SOURCES)
    raise CheckpointError(f"{path}: its keys are of no known source ({names}). It begins with {shown}")
