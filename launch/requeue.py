"""Decides at the end of a job's step, in its batch script, whether the job starts again.

    python -m launch.requeue CODE JOB FOLDER RUN_DIR

The batch script is the one place that is left when a rank, its task or its container dies, that can always talk to
SLURM, and that `scancel` ends before it could bring a job back. Node failures and preemption are SLURM's: `--requeue`.
"""

import json
import os
import signal
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

STOPPED_EARLY = (128 + signal.SIGTERM, 128 + signal.SIGUSR1, 128 + signal.SIGUSR2)
"""Codes of tasks that a signal met before they were ready for it: preempted, or out of time, while they started."""

MAX_FRUITLESS_STARTS = 20
"""Starts in a row that were asked to stop and of which none was recorded, as only training does, after which a job is not
queued again."""

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
    obstacle = what_keeps_from_starting(ends, is_training=run_dir is not None)
    verdict = f"does not start again: {obstacle}" if obstacle else "starts again"
    print(f"job {job}: {_describe(code, run_dir)}; {verdict}", flush=True)
    if not obstacle:
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
    noted = [code for code in codes if code]
    if step_code in STOPPED_EARLY and noted:  # also what ranks are ended with when another one fails
        step_code = noted[0]
    return next((code for code in noted if is_final(code)), step_code)


def what_keeps_from_starting(ends: Sequence[dict[str, Any]], *, is_training: bool) -> str:
    """Says why the job is not to be queued again; empty where it is.

    Args:
        ends: every end of this job so far: `code`, and `num_starts` that its run has recorded.
        is_training: other commands start again only if they were asked to stop, because nobody counts their crashes.
    """
    code = ends[-1]["code"]
    if is_final(code):
        return "it has finished" if code == 0 else "another start would end like this one"
    fruitless = [end["code"] for end in ends if end["num_starts"] == ends[-1]["num_starts"]]
    if len(fruitless) >= MAX_FRUITLESS_STARTS:
        more_time = "" if is_training else "; give it more --minutes"
        return f"{len(fruitless)} starts were stopped before they came to anything{more_time}"
    if _was_stopped(code):
        return ""
    if not is_training:
        return "only training is tried again after a crash"
    lost = [code for code in fruitless[-MAX_LOST_STARTS:] if not _was_stopped(code)]
    return f"{len(lost)} crashes in a row before training began" if len(lost) >= MAX_LOST_STARTS else ""


def _was_stopped(code: int) -> bool:
    return code == PREEMPTED_EXIT_CODE or code in STOPPED_EARLY


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
