"""What one clip, one core and one save cost: measured by tools/bench.py where its JSON is given, else assumed and said so."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from avff.config import Config
from avff.errors import ConfigError
from avff.simulation.cluster import Cluster
from avff.simulation.measured import machine_line, open_report, read_measured
from avff.strict_yaml import apply_override, from_dict


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What is not in the config or the cluster; the defaults are assumptions."""

    mfu: float = 0.4
    """Share of the peak that one GPU's passes reach, critics and passes that are run again counted in; measured files say
    it of whole updates without them, and are converted."""
    clips_per_second_per_core: float = 100.0
    """That one loader core reads and decodes with one window per sample (avff.simulation.work says what more cost). 93 to
    120 were measured on a core of an AMD EPYC in one process: docs/performance.md."""
    megabytes_per_clip: float = 0.26
    """That the loader reads per sample."""
    save_gb_per_second: float = 0.0
    """Written by one rank of a save, all work included; 0: what the cluster's storage takes."""
    copy_gb_per_second: float = 0.0
    """From one GPU to CPU memory while a save holds training up; 0: the cluster's."""
    least_blocked_seconds: float = 0.04
    """That a save holds training up, however little each rank has to copy: ranks meet, files are opened. Measured for
    480 MB on one and on two ranks of a CPU machine; a barrier of many nodes may take longer."""
    least_writing_seconds: float = 1.0
    """Of the rest of a save, however little each rank has to write: files are made, synced, and renamed. A guess."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; it has to be positive"
            for name, value in vars(self).items()
            if value < 0 or (value == 0 and name in ("mfu", "clips_per_second_per_core", "megabytes_per_clip"))
        ]
        if self.mfu > 1:
            problems.append(f"mfu is {self.mfu}; it is a share, at most 1 (0.4, not 40)")
        if problems:
            raise ConfigError("; ".join(problems))


class KnownCosts(NamedTuple):
    """Costs, a sentence per value that says where it is from, and one per measured file that says of which machine."""

    costs: Costs
    sources: dict[str, str]
    machines: list[str]


def known_costs(assumed: Sequence[str], measured: Sequence[Path], config: Config, cluster: Cluster) -> KnownCosts:
    """Collects costs: defaults < measured files < `name=value`.

    Args:
        assumed: `mfu=0.5` and alike.
        measured: JSON files of tools/bench.py step, loader, checkpoint, in any order.

    Raises:
        ConfigError: an unknown name with the nearest valid one, a bad value, or a file that does not fit.
    """
    values: dict[str, Any] = {}
    sources = {name: f"assumed {name}={value}" for name, value in vars(Costs()).items()}
    machines = []
    for path in measured:
        report = open_report(path)
        machines.append(machine_line(path, report, cluster))
        for name, (value, rows) in read_measured(path, report, config, cluster).items():
            values[name], sources[name] = value, f"measured {name}={value:.4g} ({path}: {rows})"
    for text in assumed:
        apply_override(values, text)
        name = text.partition("=")[0]
        sources[name] = f"given {text}"
    costs = from_dict(Costs, values, where="--assume")
    return KnownCosts(costs, {name: sources[name] for name in vars(costs) if getattr(costs, name)}, machines)


def field_lines() -> list[str]:
    """Returns `name=default` of every cost, for a help text."""
    return [f"{item.name}={item.default}" for item in dataclasses.fields(Costs)]
