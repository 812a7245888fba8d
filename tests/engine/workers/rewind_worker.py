"""Runs training jobs whose loss spikes on the clips of one step of the plan.

Argument: a JSON file with a list of jobs, {"config": plain values, "spike_at": step of the plan or null, "dies": bool}.
The loss that is reported is raised, not the one that is trained on. A job that dies ends its processes between the
decision to go back and the going back; it has to be the last one.
"""

import json
import os
import sys
from pathlib import Path

from avff.config import Config
from avff.engine import checkpoint, process
from avff.engine.loop import Loop
from avff.engine.train import run_stage
from avff.strict_yaml import from_dict


def main(jobs_path: str) -> None:
    update, set_aside = Loop._update, checkpoint.set_aside
    for number, job in enumerate(json.loads(Path(jobs_path).read_text())):

        def spike(loop, batch, stop, job=job):
            report, votes = update(loop, batch, stop)
            if batch.step == job["spike_at"]:
                report = report._replace(terms={**report.terms, "loss": 1000.0})
            return report, votes

        def die(*_, job=job, **keywords):
            if job["dies"]:
                os._exit(9)
            return set_aside(*_, **keywords)

        Loop._update, checkpoint.set_aside = spike, die
        config = from_dict(Config, job["config"], where=f"job {number}")
        run_stage(config, process.start(config))
    process.end(0)


if __name__ == "__main__":
    main(sys.argv[1])
