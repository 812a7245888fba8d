"""`--sweep key=a,b` and several configs -> one run each, with a name that says what is different about it."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avff.config import Config, load_config
from avff.errors import ConfigError
from avff.strict_yaml import flatten

LIST_COMMA = re.compile(r",(?![^\[{]*[\]}])")
"""A comma between values, not one inside of `[...]` or `{...}`."""


def plan_runs(paths: Sequence[Path], overrides: Sequence[str], sweeps: Sequence[str], num_tasks: int) -> list[Config]:
    """Returns the resolved config of every run: each file with each combination of swept values.

    Args:
        overrides: `section.key=value`, for all runs.
        sweeps: `section.key=a,b`; with several of them every combination.
        num_tasks: training processes per run, whose number has to suit the batch.

    Raises:
        ConfigError: anything that keeps any run from starting, all of it at once.
    """
    problems: list[str] = []
    configs: list[Config] = []
    for path, choice in itertools.product(paths, combinations(sweeps)):
        try:
            configs.append(_load(path, overrides, choice))
            configs[-1].accumulation_steps(num_tasks)
        except ConfigError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    again = [str(run_dir) for run_dir, count in Counter(config.run_dir for config in configs).items() if count > 1]
    problems += [f"{run_dir}: two runs would train here; give them different names" for run_dir in again]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return configs


def combinations(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the overrides of every combination: `["a=1,2", "b=3,4"]` gives (a=1, b=3), (a=1, b=4), (a=2, b=3), ...

    Raises:
        ConfigError: a sweep is not `section.key=value,value`, or comes twice.
    """
    choices: dict[str, list[str]] = {}
    for sweep in sweeps:
        key, _, values = sweep.partition("=")
        if key in choices:
            raise ConfigError(f"--sweep {key}: given twice; write all its values into one")
        if not key or not values:
            raise ConfigError(
                f"--sweep {sweep!r}: write section.key=value,value, such as optim.learning_rate=1e-4,3e-4"
            )
        choices[key] = [f"{key}={value}" for value in LIST_COMMA.split(values)]
    return list(itertools.product(*choices.values()))


def _load(path: Path, overrides: Sequence[str], choice: Sequence[str]) -> Config:
    words = [*overrides, *choice]
    config = load_config(path, words)
    swept = [override.partition("=")[0] for override in choice if not override.startswith("name=")]
    values = flatten(config)
    parts = [f"{key.rpartition('.')[2]}={_text(values[key])}" for key in swept]
    return load_config(path, [*words, f"name={'-'.join([config.name, *parts])}"]) if parts else config


def _text(value: Any) -> str:
    """Returns a value as part of a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
