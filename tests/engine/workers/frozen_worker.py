"""Runs several training runs in one launch and notes where a graph was kept.

Argument: a JSON file with a list of jobs as run_worker.py takes them, each with `graph`: a file for
{"video_encoder": whether its output had a graph in training, "audio_encoder": ...}, as rank 0 saw it.
"""

import json
import sys
from pathlib import Path

from run_worker import Stopper

from avff import distributed
from avff.config import Config
from avff.engine import process
from avff.engine.train import run_stage
from avff.engine.update import Updater
from avff.strict_yaml import from_dict

ENCODERS = ("video_encoder", "audio_encoder")


class Watch(Stopper):
    """Also looks at what the encoders hand on in every update."""

    def __init__(self, step: int | None, graph: Path):
        super().__init__(step)
        self.graph = graph

    def __call__(self, updater: Updater, *arguments, **keywords):
        seen: dict[str, bool] = {}

        def look(name: str):
            return lambda _module, _arguments, output: seen.update({name: output.requires_grad})

        network = updater.model.module
        hooks = [getattr(network, name).register_forward_hook(look(name)) for name in ENCODERS]
        try:
            return super().__call__(updater, *arguments, **keywords)
        finally:
            for hook in hooks:
                hook.remove()
            if distributed.is_main():
                self.graph.write_text(json.dumps(seen))


def main(jobs_path: str) -> None:
    original = Updater.update
    for number, job in enumerate(json.loads(Path(jobs_path).read_text())):
        config = from_dict(Config, job["config"], where=f"job {number}")
        device = process.start(config)
        watch = Watch(job["stop_in_step"], Path(job["graph"]))
        Updater.update = lambda *arguments, watch=watch, **keywords: watch(*arguments, **keywords)
        run_stage(config, device)
        Updater.update = original
    process.end(0)


if __name__ == "__main__":
    main(sys.argv[1])
