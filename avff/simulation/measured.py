"""Costs from what tools/bench.py has written: which rows of a report hold them."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from avff.config import Config
from avff.errors import ConfigError
from avff.models.flops import training_gflops
from avff.simulation.cluster import Cluster
from avff.simulation.work import clip_gflops, reading_share

Row = dict[str, Any]


class Found(NamedTuple):
    """A cost, and the rows it was taken from in words."""

    value: float
    rows: str


def open_report(path: Path) -> dict[str, Any]:
    """Returns a report of tools/bench.py: `machine`, `rows`, and what was asked for.

    Raises:
        ConfigError: no such file, or no report.
    """
    if not path.is_file():
        raise ConfigError(f"--measured {path}: no such file; tools/bench.py step, loader and checkpoint write them")
    try:
        report = json.loads(path.read_text())
        list(report["rows"][0]), report["machine"].get("gpu")
    except (json.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"--measured {path}: not a report of tools/bench.py ({error!r}); give its step.json"
        ) from error
    return report


def machine_line(path: Path, report: dict[str, Any], cluster: Cluster) -> str:
    """Returns where a report was measured and with how much, as a warning where that machine is not like the cluster's."""
    machine, gpu, cores = report["machine"], report["machine"].get("gpu"), report["machine"].get("cores")
    sizes = {f"saves of {row['megabytes']:.0f} MB" for row in report["rows"] if _is_save(row)}
    facts = [machine.get("processor"), gpu or "no GPU", f"{cores} cores" if cores else None, *sorted(sizes)]
    is_alike = (gpu is not None) == (cluster.device == "gpu") and cores == cluster.cores_per_node
    line = f"{path}: measured on {', '.join(fact for fact in facts if fact)}, for cluster {cluster.name}"
    return line if is_alike else f"warning: {line}"


def read_measured(path: Path, report: dict[str, Any], config: Config, cluster: Cluster) -> dict[str, Found]:
    """Returns the costs that a report of tools/bench.py holds, by the columns of its rows.

    Raises:
        ConfigError: no column that is understood, or measured on another kind of device or another network.
    """
    columns, machine = list(report["rows"][0]), report["machine"]
    if "mfu" in columns:
        gpu = machine.get("gpu")
        if (gpu is not None) != (cluster.device == "gpu"):
            raise ConfigError(
                f"--measured {path}: mfu was measured on {gpu or machine.get('processor')}, but cluster {cluster.name!r} is "
                f"of device {cluster.device!r}; measure on such a machine, or leave it out and use --assume mfu=..."
            )
        return {"mfu": _mfu(path, report, config, cluster)}
    found = {name: value for name, reader in _READERS.items() if (value := reader(report)) is not None}
    if not found:
        raise ConfigError(
            f"--measured {path}: no column mfu, clips_per_second_per_core, or megabytes with blocked_seconds and "
            f"total_seconds; its columns are {', '.join(columns)}"
        )
    return found


def _mfu(path: Path, report: dict[str, Any], config: Config, cluster: Cluster) -> Found:
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
    words = f"best of {_count(rows)}, with critics counted in"
    all_work = clip_gflops(config, 1)
    known = [row["mfu"] for row in rows if row["mfu"]]
    if known:
        return Found(max(known) * all_work / training_gflops(config), words)
    clips_per_second = max(row["clips_per_second"] for row in rows) / report["ranks"]
    return Found(clips_per_second * all_work / (1e3 * cluster.peak_tflops * report["threads"]), words)


def _decoding(report: dict[str, Any]) -> Found | None:
    """Of avff's loader, at one window per sample; as training reads, if it was measured so: by workers, files in memory."""
    name = "clips_per_second_per_core"
    rows = [row for row in report["rows"] if row.get("loader", "avff") == "avff" and row.get(name)]
    if not rows:
        return None
    words = []
    by_workers = [row for row in rows if row.get("workers", 0) > 0]
    if by_workers:
        rows = by_workers
        words.append(f"workers {', '.join(str(count) for count in sorted({row['workers'] for row in rows}))}")
    cached = [row for row in rows if row.get("cache") == "page cache"]
    if cached:
        rows = cached
        words.append("page cache")
    windows = report.get("windows", 1)
    if windows > 1:
        words.append(f"from {windows} windows per sample to 1")
    return Found(
        statistics.median(row[name] for row in rows) * reading_share(windows),
        ", ".join([f"median of {_count(rows)}", *words]),
    )


def _save_rate(seconds: str, report: dict[str, Any]) -> Found | None:
    """Per rank: each of them writes its part at the same time."""
    rows = [row for row in report["rows"] if _is_save(row)]
    if not rows:
        return None
    best = max(rows, key=lambda row: _per_rank(row, seconds))
    return Found(_per_rank(best, seconds), f"best of {_count(rows)} with overlap, {best['megabytes']:.0f} MB")


def _is_save(row: Row) -> bool:
    return all(row.get(name) for name in ("megabytes", "ranks", "overlap", "total_seconds", "blocked_seconds"))


def _per_rank(row: Row, seconds: str) -> float:
    return row["megabytes"] / 1e3 / row["ranks"] / row[seconds]


_READERS: dict[str, Callable[[dict[str, Any]], Found | None]] = {
    "clips_per_second_per_core": _decoding,
    "save_gb_per_second": lambda report: _save_rate("total_seconds", report),
    "copy_gb_per_second": lambda report: _save_rate("blocked_seconds", report),
}


def _count(rows: list[Row]) -> str:
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
