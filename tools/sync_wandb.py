#!/usr/bin/env python
"""Uploads runs that were trained offline to wandb: one continuous run each, however often the job was requeued."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from avff.engine.wandb_fragments import MergedRun, merge
from avff.engine.wandb_upload import is_uploaded, upload
from avff.errors import AvffError

EPILOG = """\
examples:
  python tools/sync_wandb.py runs/stage1                   # from a node with internet, after `wandb login`
  python tools/sync_wandb.py runs/*                        # again later: sends what is new, and nothing twice
  python tools/sync_wandb.py runs/stage1 --dry-run         # what there is to send
  python tools/sync_wandb.py runs/stage1 --no-upload       # merge only; prints the folder for `wandb sync`

Each start of a job leaves a fragment in RUN/wandb. They are merged into RUN/wandb/merged: one run, its steps in order,
what was redone after a kill or made void by a rewind left out, what a kill took filled in from metrics.jsonl. The run
may go on meanwhile. On the server it replaces what the run had there. To do this by itself every half hour:
  */30 * * * *  cd PROJECT && .venv/bin/python tools/sync_wandb.py runs/*

Ends with 0 when all is sent (or was), 1 when there is no login here or the server does not answer, 2 when a run could
not be read or sent.
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    codes = []
    for run_dir in tqdm(arguments.runs, unit="run", disable=None):
        try:
            codes.append(sync(run_dir, dry_run=arguments.dry_run, uploads=arguments.uploads))
        except (AvffError, OSError) as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            codes.append(2)
    return max(codes)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as runs/stage1")
    parser.add_argument("--dry-run", action="store_true", help="say what there is, write and send nothing")
    parser.add_argument("--no-upload", dest="uploads", action="store_false", help="write the merged run, send nothing")
    return parser.parse_args(argv)


def sync(run_dir: Path, *, dry_run: bool, uploads: bool) -> int:
    """Merges and sends one run; returns the code to end with."""
    merged = merge(run_dir)
    tqdm.write(f"{run_dir}: {describe(merged)}")
    if dry_run:
        tqdm.write(f"{run_dir}: {'up to date' if is_uploaded(merged) else 'not sent yet'}")
        return 0
    if not uploads:
        tqdm.write(f"{run_dir}: merged in {merged.write(merged.alerts)}; send it with `wandb sync` and that folder")
        return 0
    outcome, directory = upload(merged)
    if outcome == "merged":
        tqdm.write(
            f"{run_dir}: merged in {directory}, not sent: there is no login of wandb here, or its server does not answer, "
            "which was said above then. Run `wandb login`, or wait, and run this again; `avff report` shows the curves "
            "without wandb"
        )
        return 1
    tqdm.write(f"{run_dir}: {outcome}")
    return 0


def describe(merged: MergedRun) -> str:
    """Returns what there is, and what merging does to it."""
    steps = [row.step for row in merged.rows]
    span = f"steps {steps[0]} to {steps[-1]}" if steps else "no step yet"
    num_filled_in = sum(row.is_filled_in for row in merged.rows)
    return (
        f"{len(merged.fragments)} fragments of run {merged.id}, {len(steps)} rows ({span}), {num_filled_in} filled "
        f"in from metrics.jsonl, {merged.num_dropped} redone or void ones left out"
    )


if __name__ == "__main__":
    sys.exit(main())
