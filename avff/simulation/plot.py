"""A picture of a simulation: clips per second and efficiency, step time, memory per ZeRO stage, hours and goodput."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avff.simulation.cluster import Cluster


def draw(rows: Sequence[dict[str, Any]], cluster: Cluster, title: str, path: Path) -> None:
    """Writes a PNG or SVG, by the path's suffix; `rows` are those that can run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    gpus = [row["gpus"] for row in rows]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    figure.suptitle(title)
    speed, steps, memory, hours = axes.flat
    _draw_speed(speed, gpus, rows)
    _draw_steps(steps, gpus, rows)
    _draw_memory(memory, gpus, rows, cluster)
    _draw_hours(hours, gpus, rows)
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_xticks(gpus, [str(count) for count in gpus], rotation=45)
        axis.set_xlabel(cluster.workers)
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_speed(axis: Any, gpus: list[int], rows: Sequence[dict[str, Any]]) -> None:
    per_gpu = [row["clips_per_second"] / row["gpus"] for row in rows]
    axis.loglog(gpus, [row["clips_per_second"] for row in rows], "o-", label="clips/s")
    axis.loglog(gpus, [per_gpu[0] * count for count in gpus], "k:", label="linear")
    axis.set_ylabel("clips per second")
    axis.legend(loc="lower right")
    twin = axis.twinx()
    twin.plot(gpus, [100 * value / per_gpu[0] for value in per_gpu], "s--", color="tab:green")
    twin.set_ylim(0, 110)
    twin.set_ylabel("efficiency, % (green)")


def _draw_steps(axis: Any, gpus: list[int], rows: Sequence[dict[str, Any]]) -> None:
    parts = {
        "compute": "compute_seconds",
        "exposed communication": "exposed_seconds",
        "contrast": "contrast_seconds",
        "optimizer": "optimizer_seconds",
        "waiting for data": "wait_seconds",
    }
    axis.stackplot(gpus, [[1e3 * row[column] for row in rows] for column in parts.values()], labels=list(parts))
    axis.set_ylabel("step, ms")
    axis.legend(loc="upper left")


def _draw_memory(axis: Any, gpus: list[int], rows: Sequence[dict[str, Any]], cluster: Cluster) -> None:
    for stage in range(4):
        axis.plot(gpus, [row[f"zero{stage}_gb"] for row in rows], "o-", label=f"ZeRO {stage}")
    axis.plot(gpus, [cluster.memory_bytes(count) / 1e9 for count in gpus], "k:", label="there is")
    axis.set_ylim(bottom=0)
    axis.set_ylabel(f"memory of one {cluster.worker}, GB")
    axis.legend()


def _draw_hours(axis: Any, gpus: list[int], rows: Sequence[dict[str, Any]]) -> None:
    axis.loglog(gpus, [row["hours"] for row in rows], "o-")
    axis.set_ylabel("hours of the stage")
    twin = axis.twinx()
    twin.plot(gpus, [100 * row["goodput"] for row in rows], "s--", color="tab:green")
    twin.set_ylim(0, 105)
    twin.set_ylabel("goodput, % (green)")
