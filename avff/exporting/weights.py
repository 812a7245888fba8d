"""Checkpoints to weight files that stand alone: everything, both encoders, one of them, or the classifier."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from avff import __version__
from avff.checkpoints import Checkpoint, network_shapes, require_classifier
from avff.config import Modality
from avff.errors import CheckpointError
from avff.models.weights import make_sidecar, parent_of

What = Literal["full", "encoders", "classifier"]


class Export(NamedTuple):
    """Tensors to write, and what has to be known about them."""

    tensors: dict[str, Tensor]
    sidecar: dict[str, Any]


def export_weights(
    checkpoint: Checkpoint, what: What = "full", modalities: Sequence[Modality] = ("video", "audio")
) -> Export:
    """Takes out what was asked for.

    Args:
        what: `full` is every tensor of the run's network; `classifier` the same of a finetuned run, which scores
            clips; `encoders` what turns patches into tokens.
        modalities: of `encoders`.

    Raises:
        CheckpointError: a classifier was asked for and the run has none, or the file lacks what was asked for.
    """
    if what == "classifier":
        require_classifier(checkpoint)
    described = {"full": "", "classifier": "classifier of ", "encoders": f"{' and '.join(modalities)} encoder of "}[
        what
    ]
    prefixes = tuple(f"{modality}_encoder." for modality in modalities) if what == "encoders" else ("",)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(prefixes)}
    wanted = [name for name in network_shapes(checkpoint.config) if name.startswith(prefixes)]
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(
            f"{checkpoint.reference.weights_path}: leaves {len(missing)} tensors to a random start, such as "
            f"{missing[0]}, so there is nothing of them to export; train first, or export what it holds"
        )
    return Export(tensors, describe_export(f"{described}{checkpoint.what}", [checkpoint], tensors))


def describe_export(what: str, parents: Sequence[Checkpoint], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the sidecar of weights that were made of checkpoints with one config and one way of building clips.

    `new` in it lists the tensors of the config's network that the file does not hold, so that the file can come back
    through tools/adapt_weights.py.
    """
    first = parents[0]
    inherited = {name: first.sidecar[name] for name in ("code_revision",) if name in first.sidecar}
    if all("trained_on" in parent.sidecar for parent in parents):
        inherited["trained_on"] = _union(parent.sidecar["trained_on"] for parent in parents)
    if len(parents) == 1:
        inherited |= {
            "averaged": first.reference.is_averaged,
            "validation": first.reference.state.get("validation"),
            "step": first.reference.step,
        }
    return make_sidecar(
        what,
        first.config,
        parents=[parent_of(parent.reference.weights_path) for parent in parents],
        build=first.build,
        made_by=f"avff {__version__} tools/checkpoint.py",
        new=[name for name in network_shapes(first.config) if name not in tensors],
        **inherited,
    )


def _union(lists: Any) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for record in (record for records in lists for record in records):
        if record not in joined:
            joined.append(record)
    return joined
