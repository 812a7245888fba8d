"""Checkpoints to weight files that stand alone: everything, both encoders, one of them, or the classifier."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from avff import __version__
from avff.config import Config, Modality
from avff.errors import CheckpointError
from avff.models.build import build_model
from avff.models.lora import merge_lora
from avff.models.weights import NOT_IN_WEIGHTS, check_keys, load_weights, make_sidecar, parent_of
from avff.run_folder import CheckpointRef
from avff.strict_yaml import flatten

What = Literal["full", "encoders", "classifier"]


class Export(NamedTuple):
    """Tensors to write, and what has to be known about them."""

    tensors: dict[str, Tensor]
    sidecar: dict[str, Any]


class Checkpoint(NamedTuple):
    """Weights as a plain network reads them: LoRA is merged.

    Attributes:
        config: of that network.
        sidecar: of the file that was read.
    """

    reference: CheckpointRef
    tensors: dict[str, Tensor]
    config: Config
    sidecar: dict[str, Any]

    @property
    def what(self) -> str:
        step = f" at step {self.reference.step}" if self.reference.step >= 0 else ""
        return f"{self.sidecar.get('what', self.config.name)}{step}"

    @property
    def build(self) -> dict[str, Any] | None:
        """How the clips were made, as far as the checkpoint says."""
        return self.reference.state.get("build") or self.sidecar.get("build")


def read_checkpoint(reference: CheckpointRef) -> Checkpoint:
    """Reads all weights of a checkpoint and makes a plain network's of them.

    Raises:
        CheckpointError: the file is not whole, or its keys are not the network's.
    """
    tensors, sidecar = load_weights(reference.weights_path)
    tensors, config = merge_lora(tensors, reference.config)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_keys(network_shapes(config), found, str(reference.weights_path), sidecar.get("new", []))
    return Checkpoint(reference, tensors, config, sidecar)


def network_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every tensor in the config's network; no memory is taken for them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}


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


def require_classifier(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for weights that score no clips."""
    path = checkpoint.reference.weights_path
    if checkpoint.config.stage != "finetune":
        raise CheckpointError(
            f"{path}: is of stage {checkpoint.config.stage!r}, which has no real/fake heads; finetune it first: "
            "tools/adapt_weights.py, then avff train with stage: finetune"
        )
    if missing := [name for name in network_shapes(checkpoint.config) if name not in checkpoint.tensors]:
        raise CheckpointError(
            f"{path}: lacks {len(missing)} tensors of a classifier, such as {missing[0]}; they were left to a random "
            "start, so train with the file first"
        )


def model_differences(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns `key value against value` for each setting that changes a network, its input or how its clips are made."""
    ours, theirs = flatten(one.config), flatten(other.config)
    keys = ["stage", "pretrain.contrastive_level"]
    keys += [key for key in ours if key.startswith(("clip.", "model.")) and key not in NOT_IN_WEIGHTS]
    differing = [f"{key} {ours[key]!r} against {theirs[key]!r}" for key in keys if ours[key] != theirs[key]]
    if one.build != other.build:
        differing.append(f"build {one.build!r} against {other.build!r}")
    return differing


def _union(lists: Any) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for record in (record for records in lists for record in records):
        if record not in joined:
            joined.append(record)
    return joined
