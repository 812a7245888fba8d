"""A run of two ranks, one on each node, long enough to be disturbed; `undisturbed` (conftest.py) is what to compare with."""

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from cluster import Cluster
from compare_runs import differences
from daemons import children, wait_until
from little_runs import make_config

from avff.config import Config, save_config
from avff.run_folder import committed_steps

ROOT = Path(__file__).parents[2]
PORT = 29_400
NUM_STEPS = 40


class Launch:
    """launch/torchrun.sh on one node, with one rank, and its log."""

    def __init__(self, cluster: Cluster, node: str, config_path: Path):
        self.log_path = config_path.parent / f"{node}.log"
        variables = ["NODES=2", "PROCESSES=1", f"RENDEZVOUS={cluster.address('n1')}:{PORT}", "OMP_NUM_THREADS=1"]
        command = [*cluster.on(node), *variables, str(ROOT / "launch/torchrun.sh"), str(config_path)]
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the script, and to nothing else."""
        (script,) = children(self.process.pid)
        os.kill(script, number)

    def wait(self) -> int:
        wait_until(lambda: self.has_ended, f"the end of\n{self.log[-6000:]}")
        return self.process.returncode


def write_config(folder: Path, shards: Path) -> tuple[Path, Config]:
    """Writes the config of a run `folder/runs/run`; returns where, too."""
    config = make_config(shards, folder / "runs")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, num_steps=NUM_STEPS))
    save_config(config, folder / "config.yaml")
    return folder / "config.yaml", config


def wait_for_step(config: Config, step: int, has_ended: Callable[[], bool], log: Path) -> None:
    """Waits for a checkpoint of a step or a later one."""

    def is_there() -> bool:
        if committed_steps(config.run_dir)[-1:] >= [step]:
            return True
        assert not has_ended(), log.read_text(errors="replace")[-6000:]
        return False

    wait_until(is_there, f"a checkpoint of step {step}; see {log}")


def assert_as_undisturbed(config: Config, undisturbed: Config) -> None:
    assert json.loads((config.run_dir / "exit.json").read_text())["code"] == 0
    assert differences(config.run_dir, undisturbed.run_dir) == []
