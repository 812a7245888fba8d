"""Reads back what a run that was requeued left for wandb, and compares it with metrics.jsonl."""

import json
from pathlib import Path

from avff.engine.wandb_fragments import MergedRun, differing, merge
from avff.engine.wandb_run import run_id
from avff.json_lines import read_lines


def assert_one_wandb_run(run_dir: Path, *, num_starts: int = 1) -> MergedRun:
    """Asserts that all starts belong to one run of wandb whose steps are those of metrics.jsonl, none twice.

    Also that every row that any start wrote, redone ones included, has the numbers of metrics.jsonl, timings aside: for
    a run that never went back to an earlier step on purpose.

    Args:
        run_dir: trained with logging.wandb=offline.
        num_starts: starts that lived long enough to open wandb; those that were killed at once left nothing.
    """
    merged = merge(run_dir)
    assert {fragment.run.run_id for fragment in merged.fragments} == {run_id(run_dir)}
    assert len(merged.fragments) >= num_starts, [fragment.directory.name for fragment in merged.fragments]
    groups = {(fragment.run.run_group, fragment.run.job_type) for fragment in merged.fragments}
    assert len(groups) == 1, groups
    lines = read_lines(run_dir / "metrics.jsonl")
    steps = [row.step for row in merged.rows]
    assert steps == sorted(set(steps))
    assert set(steps) == {line["step"] for line in lines}
    for line in lines:
        written = [fragment.rows[line["step"]] for fragment in merged.fragments if line["step"] in fragment.rows]
        numbers = {name: value for name, value in line.items() if name != "kind" and value is not None}
        for row in written:
            assert not differing(row, numbers), (line, {"/".join(key): json.loads(value) for key, value in row.items()})
    return merged
