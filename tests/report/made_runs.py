"""Run folders as training leaves them, written by formula: long ones, restarted ones, ones in trouble."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

STARTED_UNIX = 1_790_000_000.0
BATCH = 64


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def train_line(step: int, **values: Any) -> dict[str, Any]:
    """One logged step; a step takes a second."""
    measured = {"loss": 2 + 4 * math.exp(-step / 300) + 0.3 * math.sin(step), "time_unix": STARTED_UNIX + 30 + step}
    return {"kind": "train", "step": step, "samples_seen": BATCH * step, **measured, **values}


def validation_line(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "samples_seen": BATCH * step, **values}


def start_line(number: int, step: int, end: dict[str, Any] | None = None, host: str = "n1") -> dict[str, Any]:
    return {"time_unix": STARTED_UNIX + 1000 * number, "host": host, "step": step, "last_end": end}


def write_run(
    folder: Path,
    metrics: Sequence[dict[str, Any]],
    *,
    config: dict[str, Any] | None = None,
    exit: dict[str, Any] | None = None,
    **lines: Sequence[dict[str, Any]],
) -> Path:
    """Writes a run folder; `lines` are starts, ledger, decisions."""
    write_lines(folder / "metrics.jsonl", metrics)
    values = {"name": folder.name, "stage": "pretrain", "optim": {"num_steps": 1000}, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    for name, records in lines.items():
        write_lines(folder / f"{name}.jsonl", records)
    if exit:
        (folder / "exit.json").write_text(json.dumps(exit))
    return folder
