"""launch/torchrun.sh on two nodes with addresses of their own, one of which is lost, or told to stop."""

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from compare_runs import differences
from daemons import children, wait_until
from little_runs import build_shards, make_config

from avff.config import Config, save_config
from avff.engine.append_log import read_lines
from avff.run_folder import committed_steps

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
PORT = 29_400
NUM_STEPS = 40
"""Enough that a run does not end before it is disturbed."""


class Launch:
    """The script on one node, with one rank, and its log."""

    def __init__(self, cluster: Cluster, node: str, config_path: Path):
        self.log_path = config_path.parent / f"{node}.log"
        variables = ["NODES=2", "PROCESSES=1", f"RENDEZVOUS={cluster.address('n1')}:{PORT}", "OMP_NUM_THREADS=1"]
        command = [*cluster.on(node), *variables, str(ROOT / "launch/torchrun.sh"), str(config_path)]
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the script, and to nothing else."""
        (script,) = children(self.process.pid)
        os.kill(script, number)

    def wait(self, seconds: float = 150) -> int:
        wait_until(lambda: self.process.poll() is not None, f"the end of\n{self.log[-6000:]}", seconds)
        return self.process.returncode


Start = Callable[..., Launch]


@pytest.fixture
def launch(cluster: Cluster) -> Iterator[Start]:
    """Starts the script on a node."""
    launches = []

    def start(node: str, config_path: Path) -> Launch:
        launches.append(Launch(cluster, node, config_path))
        return launches[-1]

    yield start
    for each in launches:
        each.process.kill()
        each.process.wait()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of two nodes to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config_path, config = write_config(folder, build_shards(folder / "shards"))
    launches = [Launch(cluster, node, config_path) for node in cluster.nodes]
    assert [each.wait() for each in launches] == [0, 0], launches[0].log[-6000:]
    return config


def write_config(folder: Path, shards: Path) -> tuple[Path, Config]:
    config = make_config(shards, folder / "runs")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, num_steps=NUM_STEPS))
    save_config(config, folder / "config.yaml")
    return folder / "config.yaml", config


def wait_for_step(config: Config, step: int, launch: Launch) -> None:
    def is_there() -> bool:
        assert launch.process.poll() is None, launch.log[-6000:]
        return committed_steps(config.run_dir)[-1:] >= [step]

    wait_until(is_there, f"a checkpoint of step {step}", seconds=150)


def assert_as_undisturbed(config: Config, undisturbed: Config) -> None:
    assert json.loads((config.run_dir / "exit.json").read_text())["code"] == 0
    assert differences(config.run_dir, undisturbed.run_dir) == []


def test_a_node_whose_script_was_killed_comes_back(launch, undisturbed, tmp_path):
    """Then the other one, which hosts the rendezvous; each time the node that is left waits for it."""
    config_path, config = write_config(tmp_path, Path(undisturbed.data.train[0].path))
    first, second = launch("n1", config_path), launch("n2", config_path)
    wait_for_step(config, 2, first)
    second.send(signal.SIGKILL)
    second.wait()
    second = launch("n2", config_path)
    wait_until(lambda: len(read_lines(config.run_dir / "starts.jsonl")) == 2, "a second start", seconds=150)
    wait_for_step(config, committed_steps(config.run_dir)[-1] + 4, second)
    first.send(signal.SIGKILL)
    first.wait()
    first = launch("n1", config_path)
    assert [first.wait(), second.wait()] == [0, 0], first.log[-6000:]
    assert len(read_lines(config.run_dir / "starts.jsonl")) == 3
    assert_as_undisturbed(config, undisturbed)


def test_term_on_one_node_saves_and_stops_both(launch, undisturbed, tmp_path):
    config_path, config = write_config(tmp_path, Path(undisturbed.data.train[0].path))
    launches = [launch("n1", config_path), launch("n2", config_path)]
    wait_for_step(config, 2, launches[0])
    launches[1].send(signal.SIGTERM)
    assert [each.wait() for each in launches] == [75, 75], launches[0].log[-6000:]
    end = json.loads((config.run_dir / "exit.json").read_text())
    assert (end["code"], end["reason"]) == (75, "stopped by SIGUSR2 on rank 1")
    assert committed_steps(config.run_dir)[-1] == end["step"] < NUM_STEPS
    launches = [launch("n1", config_path), launch("n2", config_path)]
    assert [each.wait() for each in launches] == [0, 0], launches[0].log[-6000:]
    assert_as_undisturbed(config, undisturbed)
