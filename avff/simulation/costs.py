"""What one clip, one core and one save cost: measured by tools/bench.py where its JSON is given, else assumed and said so."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from avff.config import Config
from avff.errors import ConfigError
from avff.models.flops import training_gflops
from avff.simulation.cluster import Cluster
from avff.simulation.work import clip_gflops
from avff.strict_yaml import apply_override, from_dict


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What is not in the config or the cluster; the defaults are assumptions."""

    mfu: float = 0.4
    """Share of the peak that one GPU's passes reach, critics and passes that are run again counted in; measured files say
    it of whole updates without them, and are converted."""
    clips_per_second_per_core: float = 120.0
    """That one loader core reads and decodes."""
    megabytes_per_clip: float = 0.26
    """That the loader reads per sample."""
    save_gb_per_second: float = 0.0
    """Written by one rank of a save, all work included; 0: what the cluster's storage takes."""
    copy_gb_per_second: float = 0.0
    """From one GPU to CPU memory while a save holds training up; 0: the cluster's."""

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
    """Costs, and a sentence per value that says where it is from."""

    costs: Costs
    sources: dict[str, str]


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
    for path in measured:
        for name, value in read_measured(path, config, cluster).items():
            values[name], sources[name] = value, f"measured {name}={value:.4g} ({path})"
    for text in assumed:
        apply_override(values, text)
        name = text.partition("=")[0]
        sources[name] = f"given {text}"
    costs = from_dict(Costs, values, where="--assume")
    return KnownCosts(costs, {name: sources[name] for name in vars(costs) if getattr(costs, name)})


def read_measured(path: Path, config: Config, cluster: Cluster) -> dict[str, float]:
    """Returns the costs that a report of tools/bench.py holds, by the columns of its rows.

    Raises:
        ConfigError: no such file, no report, no column that is understood, or measured on another kind of device or
            another network.
    """
    if not path.is_file():
        raise ConfigError(f"--measured {path}: no such file; tools/bench.py step, loader and checkpoint write them")
    try:
        report = json.loads(path.read_text())
        rows, machine = report["rows"], report["machine"]
        columns = list(rows[0])
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"--measured {path}: not a report of tools/bench.py ({error!r}); give its step.json"
        ) from error
    if "mfu" in columns:
        gpu = machine.get("gpu")
        if (gpu is not None) != (cluster.device == "gpu"):
            raise ConfigError(
                f"--measured {path}: mfu was measured on {gpu or machine.get('processor')}, but cluster {cluster.name!r} is "
                f"of device {cluster.device!r}; measure on such a machine, or leave it out and use --assume mfu=..."
            )
        return {"mfu": _mfu(path, report, config, cluster)}
    found = {name: best for name, best in (reader(rows) for reader in _READERS) if best is not None}
    if not found:
        raise ConfigError(
            f"--measured {path}: no column mfu, clips_per_second_per_core, or megabytes with blocked_seconds and "
            f"total_seconds; its columns are {', '.join(columns)}"
        )
    return found


def _mfu(path: Path, report: dict[str, Any], config: Config, cluster: Cluster) -> float:
    """Returns the best of the rows of this stage, size, precision and checkpointing; a CPU's from its clips per second."""
    wanted = {
        "step": "avff",
        "stage": 1 if config.stage == "pretrain" else 3,
        "size": config.model.size,
        "precision": config.engine.precision,
        "checkpointing": config.model.activation_checkpointing,
    }
    measured = [row for row in report["rows"] if row.get("result", "measured") == "measured"]  # else memory ran out
    rows = [row for row in measured if all(row.get(name, value) == value for name, value in wanted.items())]
    if not rows:
        there = sorted({str({name: row.get(name) for name in wanted}) for row in report["rows"]})
        raise ConfigError(f"--measured {path}: no row of {wanted}; there are {'; '.join(there)}")
    all_work = clip_gflops(config, 1)
    known = [row["mfu"] for row in rows if row["mfu"]]
    if known:
        return max(known) * all_work / training_gflops(config)
    clips_per_second = max(row["clips_per_second"] for row in rows) / report["ranks"]
    return clips_per_second * all_work / (1e3 * cluster.peak_tflops * report["threads"])


def _decoding(rows: list[dict[str, Any]]) -> tuple[str, float | None]:
    """Of avff's loader; other rows are what it is compared with."""
    return "clips_per_second_per_core", _best(
        [row for row in rows if row.get("loader", "avff") == "avff"], "clips_per_second_per_core"
    )


def _saving(rows: list[dict[str, Any]]) -> tuple[str, float | None]:
    """Per rank: each of them writes its part at the same time."""
    rates = [_per_rank(row, "total_seconds") for row in rows if _is_save(row)]
    return "save_gb_per_second", max(rates, default=None)


def _copying(rows: list[dict[str, Any]]) -> tuple[str, float | None]:
    rates = [_per_rank(row, "blocked_seconds") for row in rows if _is_save(row)]
    return "copy_gb_per_second", max(rates, default=None)


_READERS = (_decoding, _saving, _copying)


def _best(rows: list[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if isinstance(row.get(column), int | float)]
    return max(values, default=None)


def _is_save(row: dict[str, Any]) -> bool:
    return all(row.get(name) for name in ("megabytes", "ranks", "overlap", "total_seconds", "blocked_seconds"))


def _per_rank(row: dict[str, Any], seconds: str) -> float:
    return row["megabytes"] / 1e3 / row["ranks"] / row[seconds]


def field_lines() -> list[str]:
    """Returns `name=default` of every cost, for a help text."""
    return [f"{item.name}={item.default}" for item in dataclasses.fields(Costs)]
