"""Logs a run's steps as the loop does, without training: python wandb_worker.py CONFIG RESUME_STEP PLAN.

CONFIG: JSON file with plain values. PLAN: words, done in order:

    N            logs step N; with validation where N is even
    nodes        two nodes report their load
    panel=N      draws the panel of step N and logs it
    save=N       commits a checkpoint of step N
    lose         kills wandb's service, as a scheduler's signal to all processes of a job does
    stall        stops wandb's service, which takes nothing and answers nothing from here on
    rewind=N     goes back to step N; later losses differ from those before
    fail         ends as a run does that training stopped, with code 3
    written      waits until wandb has written the rows before the newest, which it holds back
    kill         kill -9, once they are
    crash        kill -9 at once
    preempt      ends with code 75
    end          ends with code 0
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
import wandb
from made_checkpoints import add_checkpoint
from PIL import Image

from avff.config import Config
from avff.engine import wandb_run, wandb_service
from avff.engine.metrics_log import MetricsLog
from avff.engine.wandb_file import read_records
from avff.engine.wandb_fragments import Fragment
from avff.engine.wandb_run import report_failure
from avff.strict_yaml import from_dict

STALL_SECONDS = 3.0
"""That a call may take then, so that tests need not wait as long as a training does."""


class Worker:
    def __init__(self, config: Config, resume_step: int):
        self.config = config
        config.run_dir.mkdir(parents=True, exist_ok=True)
        self.log = MetricsLog(config, resume_step=resume_step, code_revision="c0ffee")
        self.branch = 0
        self.step = resume_step

    def do(self, word: str) -> None:
        action, _, number = word.partition("=")
        if action.isdigit():
            self.log_step(int(action))
        elif action in ("panel", "save", "rewind"):
            getattr(self, action)(int(number))
        else:
            getattr(self, action)()

    def log_step(self, step: int) -> None:
        self.step = step
        values = {"loss": 1 / step + self.branch, "mfu": None, "time_unix": time.time()}
        self.log.write("train", step, 8 * step, values)
        if step % 2 == 0:
            self.log.write(
                "validation", step, 8 * step, {"validation/auc": 0.1 * step, "validation/worst": float("nan")}
            )

    def nodes(self) -> None:
        folder = self.config.run_dir / "system"
        folder.mkdir()
        for host, name, values in (("n1", "cpu_percent", (20, 30)), ("n2", "gpu0_power_watts", (500,))):
            lines = (json.dumps({"time_unix": 0, "step": 0, name: value}) + "\n" for value in values)
            (folder / f"{host}.jsonl").write_text("".join(lines))

    def panel(self, step: int) -> None:
        path = self.config.run_dir / "panels" / f"step-{step}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (step, self.branch, 0)).save(path)
        self.log.write_image("reconstruction", path, step, 8 * step)

    def save(self, step: int) -> None:
        self.log.make_durable()
        add_checkpoint(self.config.run_dir, step, value=float(step))
        self.log.write_checkpoint(step)

    def lose(self) -> None:
        service = self.service()
        service.kill()
        service.wait()

    def stall(self) -> None:
        wandb_run.CALL_SECONDS = wandb_run.FINISH_SECONDS = wandb_run.FAILURE_SECONDS = STALL_SECONDS
        self.service().suspend()

    def service(self) -> psutil.Process:
        (service,) = (child for child in psutil.Process().children() if child.name() == wandb_service.SERVICE)
        return service

    def rewind(self, step: int) -> None:
        self.branch = 1
        self.log.rewind(step)

    def fail(self) -> None:
        report_failure(self.config, reason="loss nan", code=3, step=self.step)
        os._exit(3)

    def written(self) -> None:
        path = Path(wandb.run.settings.sync_file)
        while self.step - 1 not in Fragment(path.parent, read_records(path)).rows:
            time.sleep(0.1)

    def kill(self) -> None:
        self.written()
        self.crash()

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def preempt(self) -> None:
        self.log.close(75)

    def end(self) -> None:
        self.log.close(0)


def main(config_path: str, resume_step: str, *plan: str) -> None:
    config = from_dict(Config, json.loads(Path(config_path).read_text()), where=config_path)
    worker = Worker(config, int(resume_step))
    for word in plan:
        worker.do(word)


if __name__ == "__main__":
    main(*sys.argv[1:])
