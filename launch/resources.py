"""What a job asks of SLURM, and the command-line options that say so."""

import argparse
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avff.errors import ConfigError

OWN_OPTIONS = {
    "output": "logs lie in the job's folder",
    "error": "logs lie in the job's folder",
    "open-mode": "logs of a job that starts again are appended",
    "array": "several commands become an array",
    "chdir": "submit from the folder that the config's paths are relative to",
    "requeue": "every job may start again",
    "no-requeue": "every job may start again",
    "signal": "use --signal-seconds",
    "time": "use --minutes",
    "nodes": "use --nodes",
    "ntasks": "use --tasks-per-node",
    "ntasks-per-node": "use --tasks-per-node",
    "cpus-per-task": "use --cpus-per-task",
    "gpus-per-node": "use --gpus-per-node",
    "gpus": "use --gpus-per-node",
    "gpus-per-task": "use --gpus-per-node",
    "gres": "use --gpus-per-node",
    "ntasks-per-gpu": "use --gpus-per-node",
    "mem": "use --memory-gb",
    "partition": "use --partition",
    "account": "use --account",
    "qos": "use --qos",
    "constraint": "use --constraint",
    "exclude": "use --exclude",
    "exclusive": "use --exclusive",
}
"""Options of sbatch that are set here already: what to use instead."""


def _option(default: Any, group: str, help: str, metavar: str = "N") -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "help": help, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job asks for; every field is a command-line option of the same name.

    Raises:
        ConfigError: values that no job can have; all of them at once.
    """

    nodes: int = _option(1, "size", "nodes of a job")
    tasks_per_node: int = _option(1, "size", "training processes (ranks) per node; default: one per GPU, or 1")
    gpus_per_node: int = _option(0, "size", "GPUs per node; every task sees all of them and takes its own")
    cpus_per_task: int = _option(1, "size", "CPU cores per task, loader processes included")
    memory_gb: int = _option(0, "size", "memory per node; 0: what the partition gives")
    exclusive: bool = _option(False, "size", "share the nodes with no other job")
    minutes: int = _option(60, "time", "time limit of one start; training saves before it and is queued again")
    signal_seconds: int = _option(120, "time", "how long before the limit SLURM sends USR2, should a save take longer")
    partition: str = _option("", "queue", "partition; default: the cluster's", "NAME")
    account: str = _option("", "queue", "account that is charged", "NAME")
    qos: str = _option("", "queue", "quality of service", "NAME")
    constraint: str = _option("", "queue", "features that nodes must have, such as 'h200&ib'", "FEATURES")
    exclude: str = _option("", "queue", "nodes to keep away from, such as n[03,17]", "NODES")
    sbatch: tuple[str, ...] = _option(
        (), "queue", "any other option of sbatch, such as --sbatch=--reservation=maintenance; may be repeated", "OPTION"
    )
    setup: tuple[str, ...] = _option(
        (), "environment", "shell line before python, such as 'module load cuda/12.8'; may be repeated", "LINE"
    )
    container: str = _option(
        "",
        "environment",
        "words between srun and python: 'apptainer exec --nv image.sif', or with pyxis "
        "'--container-image=image.sqsh --container-mounts=/data'",
        "WORDS",
    )
    python: str = _option(
        "", "environment", "interpreter on the nodes or in the container (default: the one that submits)", "PATH"
    )

    def __post_init__(self) -> None:
        if problems := _impossible(dataclasses.asdict(self)):
            raise ConfigError(_list(problems))

    @property
    def num_tasks(self) -> int:
        """Processes of the job: the world size of a training."""
        return self.nodes * self.tasks_per_node


def add_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds an option for every field of Resources.

    Args:
        defaults: field -> another default than that of Resources.
    """
    groups: dict[str, Any] = {}
    for item in dataclasses.fields(Resources):
        name, default = item.metadata["group"], defaults.get(item.name, item.default)
        if name not in groups:
            groups[name] = parser.add_argument_group(f"resources: {name}")
        help = item.metadata["help"] + (f" (default: {default})" if default and item.type is int else "")
        flag = "--" + item.name.replace("_", "-")
        if item.type is bool:
            groups[name].add_argument(flag, action="store_true", default=default, help=help)
        elif item.type in (int, str):
            # Text here, numbers in from_options: argparse would stop at the first mistake.
            groups[name].add_argument(flag, metavar=item.metadata["metavar"], help=help)
        else:
            groups[name].add_argument(flag, action="append", metavar=item.metadata["metavar"], help=help)
    parser.set_defaults(resource_defaults=defaults, unknown=())


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads a command line whose positional words may stand between options; leaves its mistakes to `from_options`."""
    options, words = parser.parse_known_intermixed_args(arguments)
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    # Words behind an unknown option may be its value, and tell nothing by themselves.
    wrong = [word for word in words if word.startswith("-")] or words
    options.unknown = [_unknown(word, flags) for word in wrong]
    return options


def from_options(options: argparse.Namespace) -> Resources:
    """Returns what the options ask for; without `--tasks-per-node` one task per GPU, or a single one.

    Raises:
        ConfigError: unknown options (after `parse`) and bad values, all at once, with the valid options.
    """
    problems = list(options.unknown)
    values = {}
    for item in dataclasses.fields(Resources):
        text = getattr(options, item.name)
        if text is None:
            values[item.name] = options.resource_defaults.get(item.name, item.default)
        else:
            values[item.name] = _convert(item, text, problems)
    if options.tasks_per_node is None and values["gpus_per_node"]:
        values["tasks_per_node"] = values["gpus_per_node"]
    problems += _impossible(values)
    if problems:
        raise ConfigError(_list(problems))
    return Resources(**values)


def as_single_task(resources: Resources, cpus: int) -> Resources:
    """Returns the same queue and environment for one process without a GPU, with its share of the node's memory."""
    cpus_per_node = resources.tasks_per_node * resources.cpus_per_task
    share = min(1.0, cpus / cpus_per_node)
    return dataclasses.replace(
        resources,
        nodes=1,
        tasks_per_node=1,
        gpus_per_node=0,
        cpus_per_task=cpus,
        memory_gb=math.ceil(resources.memory_gb * share),
        exclusive=False,
    )


def _convert(item: dataclasses.Field, text: Any, problems: list[str]) -> Any:
    if item.type is int:
        try:
            return int(text)
        except ValueError:
            problems.append(f"--{item.name.replace('_', '-')}: {text!r} is not a whole number")
            return None
    return tuple(text) if isinstance(text, list) else text


def _impossible(values: dict[str, Any]) -> list[str]:
    """Returns a sentence for each value that is out of range; None stands for one that was reported already."""
    least = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "minutes": 1, "signal_seconds": 1}
    numbers = [item.name for item in dataclasses.fields(Resources) if item.type is int]
    problems = [
        f"--{name.replace('_', '-')}: {values[name]} is too small; use {least.get(name, 0)} or more"
        for name in numbers
        if values[name] is not None and values[name] < least.get(name, 0)
    ]
    minutes, seconds = values["minutes"], values["signal_seconds"]
    if minutes and seconds and minutes > 0 and seconds >= 60 * minutes:
        problems.append(
            f"--signal-seconds: {seconds} is no shorter than --minutes {minutes}; use less than {60 * minutes}"
        )
    return problems + _impossible_options(values["sbatch"])


def _impossible_options(options: Sequence[str]) -> list[str]:
    """Returns a sentence for each option of sbatch that is none, or is set by another one."""
    problems: list[str] = []
    given: dict[str, str] = {}
    for text in options:
        name = text.removeprefix("--").partition("=")[0]
        if not text.startswith("--") or " " in name:
            problems.append(f"--sbatch: {text!r} is no option of sbatch; write --sbatch=--name=value")
        elif name in OWN_OPTIONS:
            problems.append(f"--sbatch: --{name} is set already; {OWN_OPTIONS[name]}")
        elif name in given:
            problems.append(f"--sbatch: {given[name]!r} and {text!r} are one option; leave one of them out")
        given.setdefault(name, text)
    return problems


def _unknown(word: str, flags: list[str]) -> str:
    name = word.partition("=")[0]
    near = difflib.get_close_matches(name, flags, n=1, cutoff=0.6)
    return f"{word}: no such option" + (f"; did you mean {near[0]}?" if near else "")


def _list(problems: list[str]) -> str:
    valid = " ".join("--" + item.name.replace("_", "-") for item in dataclasses.fields(Resources))
    return "\n".join([f"{len(problems)} mistakes in what is asked for:" if len(problems) > 1 else "a mistake in what is asked for:",
                      *(f"  {problem}" for problem in problems), f"resources are {valid}"])  # fmt: skip
