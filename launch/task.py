"""What submitit runs for every task of a job: it becomes the command, so that nothing stands between SLURM and training."""

import os
import sys
import time
from dataclasses import dataclass

JOB_END = "AVFF_JOB_END"
"""Variable holding when SLURM will end the job, in Unix seconds; empty where SLURM does not say."""

ENDING_SECONDS = 30.0
"""Kept free before the job's limit, for processes to end and the job to be queued again."""


@dataclass(frozen=True)
class Task:
    """Replaces the process by `python -P *argv`; signals, exit code and output are then the command's own.

    Attributes:
        argv: words after `python -P`.
        is_training: whether `argv` is `-m avff train ...`; it is told how much time SLURM leaves it.
        time_limit_minutes: a smaller limit that the config asks for; 0 for none.
        signal_seconds: what SLURM leaves between its signal and the kill.
    """

    argv: tuple[str, ...]
    is_training: bool = False
    time_limit_minutes: float = 0.0
    signal_seconds: int = 120

    def __call__(self) -> None:
        words = [*self.argv, *self.limits(os.environ.get(JOB_END, ""), time.time())]
        os.execv(sys.executable, [sys.executable, "-P", *words])

    def limits(self, job_end: str, now: float) -> list[str]:
        """Returns the overrides that make the config agree with SLURM.

        Args:
            job_end: when SLURM ends the job, in Unix seconds; empty where that is not known.
            now: Unix seconds.
        """
        if not self.is_training:
            return []
        limits = [self.time_limit_minutes] if self.time_limit_minutes else []
        if job_end:
            limits.append(max(0.1, (int(job_end) - now - ENDING_SECONDS) / 60))
        overrides = [f"engine.grace_seconds={self.signal_seconds}"]
        return [*overrides, f"engine.time_limit_minutes={min(limits):.2f}"] if limits else overrides
