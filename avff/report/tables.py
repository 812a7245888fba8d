"""What a report says in tables: where the runs stand, how they differ, what happened to them and to their data."""

import html
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from avff.report.curves import Clock
from avff.report.marks import describe_end
from avff.report.runs import Run

BEST = {"pretrain": ("validation/reconstruction", min), "finetune": ("validation/auc", max)}
"""Per stage, what the best checkpoint is chosen by (avff.engine.validation)."""
NUM_CAUSES = 20
NOT_COMPARED = frozenset({"name"})
"""Config keys that every run has its own of."""


def text(value: object) -> str:
    """Returns a value as HTML text."""
    return html.escape(str(value))


def swatch(index: int) -> str:
    """Returns a run's colour as a small mark."""
    return f'<i class="swatch" data-run="{index}"></i>'


def overview(runs: Sequence[Run], *, now_unix: float) -> str:
    """One line per run: state, progress, newest numbers."""
    header = ["run", "state", "step", "clips seen", "loss", "best validation", "clips/s", "time", "starts"]
    lines = [[swatch(i) + _name(run), *(text(cell) for cell in _standing(run, now_unix))] for i, run in enumerate(runs)]
    return table(header, lines)


def _name(run: Run) -> str:
    return f'<b title="{text(run.path)}">{text(run.label)}</b>'


def _standing(run: Run, now_unix: float) -> list[str]:
    newest = run.metrics[-1]
    train = (run.of_kind("train") or [{}])[-1]
    progress = f"{newest['step']:,}" + (f" of {run.num_steps:,}" if run.num_steps else "")
    elapsed = train.get("time_unix", float("nan")) - Clock(run).origin_unix
    return [
        _state(run, now_unix),
        progress,
        f"{newest['samples_seen']:,}",
        _number(train.get("loss")),
        _best(run),
        _number(train.get("clips_per_second")),
        _duration(elapsed),
        str(max(1, len(run.starts))),
    ]


def _state(run: Run, now_unix: float) -> str:
    if run.holder:
        job = f", job {run.holder['job']}" if run.holder.get("job") else ""
        return f"training on {run.holder['host']}{job}{_age(run, now_unix)}"
    if run.exit is None:
        return f"training elsewhere, or killed{_age(run, now_unix)}"
    return "finished" if run.exit["code"] == 0 else describe_end(run.exit)


def _age(run: Run, now_unix: float) -> str:
    written = [line["time_unix"] for line in run.metrics if "time_unix" in line]
    return f"; newest line {_duration(max(0.0, now_unix - written[-1]))} old" if written else ""


def _best(run: Run) -> str:
    name, choose = BEST.get(run.config.get("stage", ""), ("", min))
    scores = {line["step"]: line[name] for line in run.of_kind("validation") if _is_finite(line.get(name))}
    if not scores:
        return "–"
    step = choose(scores, key=lambda step: scores[step])
    return f"{name.removeprefix('validation/')} {_number(scores[step])} at step {step:,}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def differences(runs: Sequence[Run]) -> str:
    """The config keys whose values differ; empty where none does or there is one run."""
    flat = [_flatten(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key not in NOT_COMPARED]
    lines = []
    for key in keys:
        cells = [_config_value(values[key]) if key in values else "–" for values in flat]
        if len(set(cells)) > 1:
            lines.append([f"<code>{text(cell)}</code>" for cell in (key, *cells)])
    return (
        table(["key", *(swatch(i) + text(run.label) for i, run in enumerate(runs))], lines, raw=True) if lines else ""
    )


def _config_value(value: Any) -> str:
    """As in YAML, but on one line."""
    return value if isinstance(value, str) and value else json.dumps(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def starts(runs: Sequence[Run]) -> str:
    """One line per start of the runs that were started more than once, with how each ended."""
    lines = []
    for index, run in enumerate(runs):
        if len(run.starts) < 2:
            continue
        ends = [start["last_end"] for start in run.starts[1:]] + [run.exit]
        for number, (start, end) in enumerate(zip(run.starts, ends, strict=True), 1):
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(start["time_unix"]))
            ended = describe_end(end) if end else "not yet, or killed"
            cells = [text(cell) for cell in (start["host"], f"{start['step']:,}", ended)]
            lines.append([swatch(index) + text(run.label), str(number), f"<time>{when}</time>", *cells])
    return table(["run", "start", "UTC", "host of rank 0", "from step", "how it ended"], lines) if lines else ""


def ledger(runs: Sequence[Run]) -> str:
    """Replaced samples, skipped updates and spikes, most frequent cause first; empty where nothing happened."""
    lines = []
    for index, run in enumerate(runs):
        causes = Counter(_cause(record) for record in run.ledger)
        steps: dict[tuple[str, str, str], list[int]] = {}
        for record in run.ledger:
            steps.setdefault(_cause(record), []).append(record["step"])
        for cause, count in causes.most_common(NUM_CAUSES):
            span = f"{min(steps[cause]):,} – {max(steps[cause]):,}" if count > 1 else f"{steps[cause][0]:,}"
            lines.append([swatch(index) + text(run.label), *(text(cell) for cell in (*cause, f"{count:,}", span))])
        if len(causes) > NUM_CAUSES:
            more = f"{len(causes) - NUM_CAUSES} more in {run.path}/ledger.jsonl"
            lines.append([swatch(index) + text(run.label), text(more), "", "", "", ""])
    return table(["run", "what", "where", "reason", "times", "steps"], lines) if lines else ""


def _cause(record: Mapping[str, Any]) -> tuple[str, str, str]:
    if record["kind"] == "substituted":
        return "sample replaced", str(record["shard"]), str(record["reason"])
    if record["kind"] == "skipped":
        terms = [
            name for batch in record["batches"] for name, value in batch["terms"].items() if not _finite_text(value)
        ]
        return "update skipped", "", "not finite: " + (", ".join(dict.fromkeys(terms)) or "gradients")
    return record["kind"], "", ""


def _finite_text(value: str) -> bool:
    return value not in ("nan", "inf", "-inf")


def table(header: Sequence[str], lines: Sequence[Sequence[str]], *, raw: bool = False) -> str:
    """Returns a table of cells that are HTML already.

    Args:
        raw: so is the header.
    """
    head = "".join(f"<th>{name if raw else text(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    return f"{value:.4g}" if _is_finite(value) else "–"


def _duration(seconds: float) -> str:
    """Returns seconds in the two largest units: `3 d 4 h`, `12 min 5 s`."""
    if not seconds < float("inf"):
        return "–"
    units = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    rest = round(seconds)
    parts: list[str] = []
    for size, name in units:
        if rest >= size or (size == 1 and not parts):
            parts.append(f"{rest // size} {name}")
        rest %= size
    return " ".join(parts[:2])
