"""Decides at the end of a job's step, in its batch script, whether the job starts again.

    python -m launch.requeue CODE JOB FOLDER RUN_DIR

The batch script is the one place that is left when a rank, its task or its container dies, that can always talk to
SLURM, and that `scancel` ends before it could bring a job back. Node failures and preemption are SLURM's: `--requeue`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avff.errors import PREEMPTED_EXIT_CODE, is_final
from avff.launched import EXIT_CODE_FILE

MAX_LOST_STARTS = 3
"""Crashes in a row before training recorded its start, after which a job is not queued again; later ones are counted by
`avff train` itself (faults.max_failed_starts)."""

ATTEMPTS, PAUSE_SECONDS = 10, 10.0
"""How often and after how long the controller is asked again where it does not answer."""


def main(arguments: Sequence[str]) -> int:
    """Returns the code that the batch script ends with, after it has queued the job again where that is of use."""
    step_code, job, folder = int(arguments[0]), arguments[1], Path(arguments[2])
    run_dir = Path(arguments[3]) if arguments[3] else None  # empty: not a training
    code = decisive(step_code, _read_codes(Path(os.environ[EXIT_CODE_FILE])))
    end = {"code": code, "num_starts": _num_starts(run_dir), "time_unix": time.time()}
    path = ends_path(folder, job)
    with path.open("a") as file:
        file.write(json.dumps(end) + "\n")
    ends = [json.loads(line) for line in path.read_text().splitlines()]
    again = starts_again(ends, is_training=run_dir is not None)
    print(f"job {job}: {_describe(code, run_dir)}; {'starts again' if again else 'does not start again'}")
    sys.stdout.flush()
    if again:
        _requeue(job)
    return code


def ends_path(folder: Path, job: str) -> Path:
    """Returns the file in a job's folder that lists how each of its starts ended."""
    return folder / f"{job}_ends.jsonl"


def decisive(step_code: int, codes: Sequence[int]) -> int:
    """Returns the code that decides: of a rank that says that another start is of no use, or else the step's own.

    Args:
        step_code: of srun, the highest of its tasks; ranks that had to be killed hide the reason of the first.
        codes: those that ranks wrote down before they ended.
    """
    if step_code == 0:
        return 0
    return next((code for code in codes if code and is_final(code)), step_code)


def starts_again(ends: Sequence[dict[str, Any]], *, is_training: bool) -> bool:
    """Says whether the job is to be queued again.

    Args:
        ends: every end of this job so far: `code`, and `num_starts` that its run has recorded.
        is_training: other commands start again only if they ask for it, because nobody counts their crashes.
    """
    code = ends[-1]["code"]
    if is_final(code) or code == PREEMPTED_EXIT_CODE:
        return code == PREEMPTED_EXIT_CODE
    last = ends[-MAX_LOST_STARTS:]
    lost = [end for end in last if end["num_starts"] == last[-1]["num_starts"] and end["code"] != PREEMPTED_EXIT_CODE]
    return is_training and len(lost) < MAX_LOST_STARTS


def _requeue(job: str) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        if subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0:
            return
    print(f"job {job}: could not be queued again; submit it again", flush=True)


def _read_codes(path: Path) -> list[int]:
    """Returns what ranks wrote; several nodes append to one file, so a line may be torn."""
    lines = path.read_text().split() if path.is_file() else []
    return [int(line) for line in lines if line.isdigit()]


def _num_starts(run_dir: Path | None) -> int:
    starts = run_dir / "starts.jsonl" if run_dir else None
    return len(starts.read_text().splitlines()) if starts and starts.is_file() else 0


def _describe(code: int, run_dir: Path | None) -> str:
    """Returns the code, with the reason in exit.json where it is of the same end."""
    path = run_dir / "exit.json" if run_dir else None
    record = json.loads(path.read_text()) if path and path.is_file() else {}
    return f"code {code}, {record['reason']}" if record.get("code") == code else f"code {code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
