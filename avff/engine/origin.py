"""Where a run's weights come from: decided when it starts, remembered in every checkpoint.

A continued run takes all of it from its checkpoint, so `engine.init_weights` may be gone or rewritten by then.
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from avff.config import Config
from avff.data.trained_on import inherited_records, join_records
from avff.errors import CheckpointError, ConfigError
from avff.models.freeze import frozen_names
from avff.models.weights import load_initial_weights, parent_of
from avff.sidecar import read_sidecar


class Origin(NamedTuple):
    """What is known about a run's weights besides their values; all of it is plain and goes into state.json.

    Attributes:
        new_names: parameters that `engine.init_weights` left to their random start; they learn at a rate of their own.
        parents: the file that the run started from, as `parent_of` describes it.
        trained_on: shard directories of this run and of all ancestors, as `training_records` describes them.
    """

    new_names: list[str]
    parents: list[dict[str, Any]]
    trained_on: list[dict[str, Any]]


def start_from(config: Config, model: nn.Module, own_records: list[dict[str, Any]]) -> Origin:
    """Fills a model for a run that starts now, from `engine.init_weights` where that is set.

    Args:
        own_records: what this run will train on.

    Raises:
        ConfigError: parts of the model are frozen, and nothing is to fill them.
        CheckpointError: the file is missing, does not fit the model, or leaves a frozen part to a random start.
    """
    frozen = frozen_names(model)
    if not config.engine.init_weights:
        if frozen:
            raise ConfigError(
                f"finetune.encoders is {config.finetune.encoders!r}, but engine.init_weights names no file, so that the "
                "encoders would stay random; name one, or set finetune.encoders=train"
            )
        return Origin([], [], own_records)
    path = Path(config.engine.init_weights)
    new_names = load_initial_weights(model, path, config)
    random = sorted(frozen.intersection(new_names))
    if random:
        raise CheckpointError(
            f"{path}: leaves {', '.join(random)} to a random start, where finetune.encoders="
            f"{config.finetune.encoders} would keep them; set finetune.encoders=train"
        )
    inherited = inherited_records(read_sidecar(path), path)
    return Origin(new_names, [parent_of(path)], join_records(own_records, inherited))


def continue_from(state: dict[str, Any]) -> Origin:
    """Returns the origin that a checkpoint's state remembers."""
    return Origin(state["new_names"], state["parents"], state["trained_on"])
