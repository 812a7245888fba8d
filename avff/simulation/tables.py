"""The tables that tools/simulate.py prints."""

from collections.abc import Iterator, Sequence
from typing import Any

from avff.bench.report import table
from avff.config import Config
from avff.simulation.cluster import Cluster
from avff.simulation.costs import KnownCosts
from avff.simulation.reading import PlanFacts
from avff.simulation.stage import Scaling

GROWN = "*"


def report(
    config: Config,
    cluster: Cluster,
    known: KnownCosts,
    scaling: Scaling,
    rows: Sequence[dict[str, Any]],
    plan: PlanFacts,
) -> Iterator[str]:
    """Yields the lines of everything that was computed; `rows` are those that can run."""
    yield (
        f"{config.name} on {cluster.name} ({cluster.gpus_per_node} {_processes(cluster)} and {cluster.cores_per_node} cores a "
        f"node), ZeRO {config.engine.zero_stage}, {config.engine.precision}, {scaling} scaling"
    )
    yield from (f"  {source}" for source in known.sources.values())
    yield f"  cluster: {cluster.source}"
    yield ""
    yield from plan_lines(config, plan)
    yield from ["", "speed", table([speed_row(row, rows[0]) for row in rows])]
    yield from speed_notes(rows)
    yield from ["", "memory of one GPU in GB, at its peak", table([memory_row(row) for row in rows])]
    yield from ["", "checkpoints and the whole stage", table([stage_row(row) for row in rows])]


def plan_lines(config: Config, plan: PlanFacts) -> Iterator[str]:
    epochs = config.optim.num_steps * config.samples_per_step / plan.samples
    yield (
        f"plan of {plan.source}: {plan.samples} samples per epoch in {plan.shards} shards, {config.num_runs} runs, "
        f"{config.samples_per_step} samples a step; {config.optim.num_steps} steps are {epochs:.1f} epochs"
    )
    seeks = ", ".join(
        f"step {seek.step}: {1e3 * seek.first_seconds:.1f} ms, then {1e3 * seek.again_seconds:.2f} ms"
        for seek in plan.seeks
    )
    yield f"  made in {plan.make_seconds:.2f} s; a step's samples are found in: {seeks}"


def speed_row(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    per_gpu = row["clips_per_second"] / row["gpus"]
    return {
        "GPUs": row["gpus"],
        "nodes": row["nodes"],
        "batch": f"{row['batch']}{'' if row['as_configured'] else GROWN}",
        "micro": row["micro"],
        "passes": row["passes"],
        "group": row["group"],
        "clips/s": row["clips_per_second"],
        "per GPU": per_gpu,
        "MFU %": 100 * row["mfu"],
        "efficiency %": 100 * per_gpu / (first["clips_per_second"] / first["gpus"]),
        "step ms": 1e3 * row["step_seconds"],
        "exposed ms": 1e3 * row["exposed_seconds"],
        "contrast ms": 1e3 * row["contrast_seconds"],
        "wait ms": 1e3 * row["wait_seconds"],
        "loader cores": row["loader_cores"],
        "has": row["cores"],
        "read GB/s": row["read_gb_per_second"],
        "limit": row["limit"],
    }


def speed_notes(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not all(row["as_configured"] for row in rows):
        yield (
            f"{GROWN} the config as it stands does not divide over so many GPUs; the batch and group shown do, and optimise "
            "differently: check the learning rate"
        )
    if any(row["two_pass"] for row in rows):
        yield "where a group exceeds a forward pass of all GPUs, embeddings are computed twice, which is in the step"
    yield "efficiency: clips/s per GPU against the first line; loader cores, has: those one GPU's clips take, and its share"


def memory_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "GPUs": row["gpus"],
        **{f"ZeRO {stage}": row[f"zero{stage}_gb"] for stage in range(4)},
        "weights": row["weights_gb"],
        "gradients": row["gradients_gb"],
        "masters": row["masters_gb"],
        "moments": row["moments_gb"],
        "EMA": row["ema_gb"],
        "contrast": row["contrast_gb"],
        "activations": row["activations_gb"],
        "fits": "yes" if row["memory_fits"] else "NO",
        "largest micro": row["largest_micro"],
    }


def stage_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "GPUs": row["gpus"],
        "steps": row["steps"],
        "checkpoint GB": row["checkpoint_gb"],
        "blocked s": row["blocked_seconds"],
        "save s": row["save_seconds"],
        "hours to failure": row["hours_between_failures"],
        "save every min": row["save_every_minutes"],
        "steps each": row["save_every_steps"],
        "goodput %": 100 * row["goodput"],
        "as configured %": 100 * row["goodput_as_configured"],
        "hours": row["hours"],
        "GPU hours": row["gpu_hours"],
        "cost": row["cost"],
    }


def _processes(cluster: Cluster) -> str:
    return "GPUs" if cluster.device == "gpu" else "processes"
