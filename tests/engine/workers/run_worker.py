"""Runs several training runs in one launch, to pay for starting processes once.

Argument: a JSON file with a list of jobs, {"config": plain values, "stop_in_step": null or a step}. In that step the
last rank sends itself USR2, as a scheduler would, so that the run saves and stops.
"""

import json
import os
import signal
import sys
from pathlib import Path

from avff import distributed
from avff.config import Config
from avff.engine import process
from avff.engine.train import run_stage
from avff.engine.update import Updater
from avff.strict_yaml import from_dict


class Stopper:
    """Stands in for `Updater.update` and sends the signal from within the step."""

    def __init__(self, step: int | None):
        self.step = step
        self.update = Updater.update

    def __call__(self, updater: Updater, step: int, *arguments, **keywords):
        if step == self.step and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return self.update(updater, step, *arguments, **keywords)


def main(jobs_path: str) -> None:
    jobs = json.loads(Path(jobs_path).read_text())
    original = Updater.update
    for number, job in enumerate(jobs):
        config = from_dict(Config, job["config"], where=f"job {number}")
        device = process.start(config)
        stopper = Stopper(job["stop_in_step"])
        Updater.update = lambda *arguments, stopper=stopper, **keywords: stopper(*arguments, **keywords)
        code = run_stage(config, device)
        Updater.update = original
        assert code == (0 if job["stop_in_step"] is None else 75), (number, code)
    process.end(0)


if __name__ == "__main__":
    main(sys.argv[1])
