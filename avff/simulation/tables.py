"""The tables that tools/simulate.py prints."""

from collections.abc import Iterator, Sequence
from typing import Any

from avff.bench.report import table
from avff.config import Config
from avff.simulation.cluster import Cluster
from avff.simulation.costs import KnownCosts
from avff.simulation.reading import PlanFacts
from avff.simulation.stage import NO_MATTER, Scaling

CHANGED, TOO_SHORT = "*", "!"
SHOWN_SHARE = 0.15
"""Of a step: exposed communication from here on is named, whatever else decides."""


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
        f"{config.name} on {cluster.name} ({cluster.gpus_per_node} {cluster.workers} and {cluster.cores_per_node} cores a "
        f"node), ZeRO {config.engine.zero_stage}, {config.engine.precision}, {scaling} scaling"
    )
    yield from (f"  {source}" for source in known.sources.values())
    yield from (f"  {line}" for line in known.machines)
    yield f"  cluster: {cluster.source}"
    yield ""
    yield from plan_lines(config, plan)
    yield from ["", "speed", table([speed_row(row, rows[0], cluster) for row in rows])]
    yield from speed_notes(config, cluster, scaling, rows)
    yield from [
        "",
        f"memory of one {cluster.worker} in GB, at its peak: under each ZeRO stage, and its parts under ZeRO "
        f"{config.engine.zero_stage}",
        table([memory_row(row, cluster) for row in rows]),
    ]
    yield from ["", "checkpoints and the whole stage", table([stage_row(row, cluster) for row in rows])]
    yield from stage_notes(cluster, rows)


def plan_lines(config: Config, plan: PlanFacts) -> Iterator[str]:
    epochs = config.optim.num_steps * config.samples_per_step / plan.samples
    yield (
        f"{plan.source}: {plan.samples} samples per epoch in {plan.shards} shards, {config.samples_per_step} samples a step; "
        f"{config.optim.num_steps} steps are {epochs:.1f} epochs"
    )
    yield (
        f"  shuffled in a plan that was made in {plan.make_seconds:.2f} s; samples are read at {config.num_runs} places of an "
        "epoch at once"
    )
    seeks = ", ".join(
        f"{1e3 * seek.first_seconds:.0f} ms at step {seek.step} ({1e3 * seek.again_seconds:.1g} ms the second time)"
        for seek in plan.seeks
    )
    yield f"  finding a step's samples in it, as a resumed run does first: {seeks}"


def speed_row(row: dict[str, Any], first: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    per_gpu = row["clips_per_second"] / row["gpus"]
    return {
        cluster.workers: row["gpus"],
        "nodes": row["nodes"],
        "batch": _marked(row, "batch"),
        "micro": _marked(row, "micro"),
        "passes": row["passes"],
        "group": _marked(row, "group"),
        "clips/s": row["clips_per_second"],
        f"per {cluster.worker}": per_gpu,
        "MFU %": 100 * row["mfu"],
        "efficiency %": 100 * per_gpu / (first["clips_per_second"] / first["gpus"]),
        "step ms": 1e3 * row["step_seconds"],
        "exposed ms": 1e3 * row["exposed_seconds"],
        "contrast ms": 1e3 * row["contrast_seconds"],
        "wait ms": 1e3 * row["wait_seconds"],
        "loader cores": row["loader_cores"],
        "has": row["cores"],
        "read GB/s": row["read_gb_per_second"],
        "limit": _limit(row),
    }


def _marked(row: dict[str, Any], column: str) -> str:
    return f"{row[column]}{CHANGED if column in row['changed'] else ''}"


def _limit(row: dict[str, Any]) -> str:
    share = row["exposed_seconds"] / row["step_seconds"]
    if share > SHOWN_SHARE and row["limit"] != "communication":
        return f"{row['limit']}, {100 * share:.0f} % communication"
    return row["limit"]


def speed_notes(config: Config, cluster: Cluster, scaling: Scaling, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    changed = {name for row in rows for name in row["changed"]}
    if changed:
        kept = {
            "weak": f"weak scaling keeps the micro batch, so that the batch grows with the {cluster.workers}, and the "
            f"contrastive group where each {cluster.worker} has to hold a clip of it",
            "strong": "strong scaling keeps the batch and lowers the micro batch until it divides",
        }
        yield (
            f"{CHANGED} not the config's own (batch {config.engine.global_batch_size}, micro "
            f"{config.engine.micro_batch_size}, group {config.group_size}): {kept[scaling]}"
        )
    if changed & {"batch", "group"}:
        yield "  another batch or group optimises differently: check the learning rate"
    if any(row["two_pass"] for row in rows):
        yield (
            f"where a group exceeds a forward pass of all {cluster.workers}, embeddings are computed twice, which is in "
            "the step"
        )
    yield (
        f"efficiency: clips/s per {cluster.worker} against the first line; loader cores, has: those one "
        f"{cluster.worker}'s clips take, and its share"
    )


def memory_row(row: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    return {
        cluster.workers: row["gpus"],
        **{f"ZeRO {stage}": row[f"zero{stage}_gb"] for stage in range(4)},
        "weights": row["weights_gb"],
        "gradients": row["gradients_gb"],
        "masters": row["masters_gb"],
        "moments": row["moments_gb"],
        "EMA": row["ema_gb"],
        "contrast": row["contrast_gb"],
        "activations": row["activations_gb"],
        "other": row["other_gb"],
        "fits": "yes" if row["memory_fits"] else "NO",
        "largest micro": row["largest_micro"],
    }


def stage_row(row: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    return {
        cluster.workers: row["gpus"],
        "steps": f"{row['steps']}{TOO_SHORT if _is_too_short(row) else ''}",
        "checkpoint GB": row["checkpoint_gb"],
        "blocked s": row["blocked_seconds"],
        "save s": row["save_seconds"],
        "hours to failure": row["hours_between_failures"],
        "save every min": row["save_every_minutes"],
        "steps each": row["save_every_steps"],
        "at most": row["save_every_steps_at_most"],
        "goodput %": 100 * row["goodput"],
        "as configured %": 100 * row["goodput_as_configured"],
        "hours": row["hours"],
        f"{cluster.worker} hours": row["gpu_hours"],
        "cost": row["cost"],
    }


def _is_too_short(row: dict[str, Any]) -> bool:
    return row["steps"] < row["warmup_steps"]


def stage_notes(cluster: Cluster, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"saving less often, up to every `at most` steps, changes goodput by less than {100 * NO_MATTER:.1g} %; a save is over "
        "before the next one begins"
    )
    short = [f"{row['steps']} on {row['gpus']}" for row in rows if _is_too_short(row)]
    if short:
        yield (
            f"{TOO_SHORT} fewer steps than optim.warmup_steps {rows[0]['warmup_steps']} ({', '.join(short)} "
            f"{cluster.workers}), which a config refuses: these rows say how fast, not that such a run trains"
        )
