"""Reads what an earlier process stored beside its weights: sidecars, and the configs in them and in run folders."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avff import __version__
from avff.config import Config
from avff.errors import CheckpointError, ConfigError
from avff.strict_yaml import from_dict


def read_sidecar(path: Path) -> dict[str, Any]:
    """Returns what a weight file says about itself; raises CheckpointError where it says nothing readable."""
    sidecar_path = path.with_suffix(".json")
    if not sidecar_path.is_file():
        raise CheckpointError(f"{path}: {sidecar_path.name} is missing beside it; it says what the weights are")
    try:
        sidecar = json.loads(sidecar_path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{sidecar_path}: not valid JSON: {error}") from error
    if not isinstance(sidecar, dict):
        raise CheckpointError(f"{sidecar_path}: expected a JSON object, found {type(sidecar).__name__}")
    return sidecar


def config_of(sidecar: Mapping[str, Any], path: Path) -> Config:
    """Returns the config that the weights in `path` belong to.

    Raises:
        ConfigError: it is not a config of this version; the message names the version that wrote it.
    """
    with written_by(sidecar):
        return from_dict(Config, sidecar["config"], where=str(path.with_suffix(".json")))


@contextmanager
def written_by(record: Mapping[str, Any]) -> Iterator[None]:
    """Adds to a ConfigError about a stored config which version of avff wrote it, as far as that is recorded.

    Args:
        record: sidecar or state with `avff_version`, and `code_revision` if it is known.
    """
    try:
        yield
    except ConfigError as error:
        version, revision = record.get("avff_version"), record.get("code_revision")
        if version is None:
            raise
        writer = f"avff ({version}" if version == __version__ else f"another version of avff ({version}"
        writer += f", revision {revision[:12]})" if revision else ")"
        raise ConfigError(f"{error}\nwritten by {writer}; this one is {__version__}") from error
