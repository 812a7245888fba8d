"""A checkpoint as one plain network: its weights with LoRA merged, what it can do, and how two differ.

Everything that runs or hands on finished weights reads them here, whatever wrote them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.build import build_classifier, build_model
from avff.models.classifier import Classifier
from avff.models.lora import merge_lora
from avff.models.weights import NOT_IN_WEIGHTS, check_keys, load_into, load_weights
from avff.run_folder import CheckpointRef
from avff.strict_yaml import flatten


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


class Difference(NamedTuple):
    """A setting in which two configs differ."""

    key: str
    one: Any
    other: Any


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


def load_classifier(checkpoint: Checkpoint) -> Classifier:
    """Returns the checkpoint's classifier in evaluation mode; raises CheckpointError for weights that score no clips."""
    require_classifier(checkpoint)
    model = build_classifier(checkpoint.config)
    load_into(model, checkpoint.tensors, str(checkpoint.reference.weights_path))
    return model.eval()


def config_differences(one: Config, other: Config) -> list[Difference]:
    """Returns each setting that changes a network or its input, where two configs differ in it."""
    ours, theirs = flatten(one), flatten(other)
    keys = ["stage"] if one.stage == "finetune" else ["stage", "pretrain.contrastive_level"]
    keys += [key for key in ours if key.startswith(("clip.", "model.")) and key not in NOT_IN_WEIGHTS]
    return [Difference(key, ours[key], theirs[key]) for key in keys if ours[key] != theirs[key]]
