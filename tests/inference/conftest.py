"""A run folder with one committed checkpoint of a tiny classifier with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avff import run_folder
from avff.config import BuildConfig, Config, from_dict, save_config, to_dict
from avff.data.shards import ShardDirectory
from avff.models.build import build_model
from avff.models.weights import make_sidecar, save_weights


def write_run(config: Config, build: BuildConfig | None, validation: dict[str, Any] | None) -> Path:
    """Writes what inference reads of a run: config, committed weights, state."""
    directory = run_folder.checkpoint_dir(config.run_dir, 7)
    directory.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    plain_build = None if build is None else to_dict(build)
    sidecar = make_sidecar("random weights", config, build=plain_build, step=7, validation=validation)
    save_weights(directory / run_folder.EMA, build_model(config).state_dict(), sidecar)
    (directory / run_folder.STATE).write_text(json.dumps({"step": 7, "build": plain_build, "validation": validation}))
    (directory / run_folder.FILES).write_text("{}")
    (directory / run_folder.COMMIT).write_text(run_folder.sha256_of(directory / run_folder.FILES))
    return config.run_dir


@pytest.fixture
def make_run(tiny_config: Callable[..., Config], shard_directory: ShardDirectory) -> Callable[..., Path]:
    """Writes a run: `make_run(stage="finetune", build=BuildConfig(...), threshold=0.5, **config sections)`.

    Without `build` it fits `shard_directory`; `build=None` records nothing, `threshold=None` no validation.
    """
    fitting = from_dict(BuildConfig, shard_directory.manifest["build"], where="manifest")

    def make(
        stage: str = "finetune", build: BuildConfig | None = fitting, threshold: float | None = 0.5, **config: Any
    ) -> Path:
        validation = {"metric": "auc", "value": 0.7, "higher_is_better": True, "threshold": threshold}
        return write_run(tiny_config(stage, **config), build, None if threshold is None else validation)

    return make
