"""What every benchmark prints and writes: rows, and the machine and versions they were measured with."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from avff import __version__
from avff.files import write_durably

PACKAGES = ("torch", "torchcodec", "decord", "av", "numpy", "webdataset", "deepspeed")


def write_report(path: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """Writes rows, machine and versions as JSON, and returns them as text.

    Args:
        rows: equal columns; numbers, text, or None for what was not measured.
        about: what was measured.
    """
    report = {**about, "machine": machine(), "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(report, indent=1) + "\n").encode())
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if value is not None)
    return "\n".join([table(rows), facts, f"written {path}"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows as aligned columns: text to the left, numbers to the right with four significant digits."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [any(isinstance(row[name], str) for row in rows) for name in names]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if is_left else f"{cell:>{width}}"
            for cell, width, is_left in zip(line, widths, left, strict=True)
        )
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def machine() -> dict[str, Any]:
    """Returns what figures depend on: processor, load, GPU, versions, revision of the code."""
    root = Path(__file__).parents[2]
    revision = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "avff": __version__,
        "revision": revision.stdout.strip() or "unknown",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
