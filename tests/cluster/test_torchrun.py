"""launch/torchrun.sh on two nodes with addresses of their own, one of which is lost, or told to stop."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from daemons import wait_until
from two_ranks import NUM_STEPS, Launch, assert_as_undisturbed, wait_for_step, write_config

from avff.config import Config
from avff.json_lines import read_lines
from avff.run_folder import committed_steps

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def launch(cluster: Cluster) -> Iterator[Callable[[str, Path], Launch]]:
    """Starts the script on a node."""
    launches = []

    def start(node: str, config_path: Path) -> Launch:
        launches.append(Launch(cluster, node, config_path))
        return launches[-1]

    yield start
    for each in launches:
        each.process.kill()
        each.process.wait()


def wait_for(config: Config, step: int, launch: Launch) -> None:
    wait_for_step(config, step, lambda: launch.has_ended, launch.log_path)


def test_a_node_whose_script_was_killed_comes_back(launch, undisturbed, tmp_path):
    """Then the other one, which hosts the rendezvous; each time the node that is left waits for it."""
    config_path, config = write_config(tmp_path, Path(undisturbed.data.train[0].path))
    first, second = launch("n1", config_path), launch("n2", config_path)
    wait_for(config, 2, first)
    second.send(signal.SIGKILL)
    second.wait()
    second = launch("n2", config_path)
    wait_until(lambda: len(read_lines(config.run_dir / "starts.jsonl")) == 2, "a second start")
    wait_for(config, committed_steps(config.run_dir)[-1] + 4, second)
    first.send(signal.SIGKILL)
    first.wait()
    first = launch("n1", config_path)
    assert [first.wait(), second.wait()] == [0, 0], first.log[-6000:]
    assert len(read_lines(config.run_dir / "starts.jsonl")) == 3
    assert_as_undisturbed(config, undisturbed)


def test_term_on_one_node_saves_and_stops_both(launch, undisturbed, tmp_path):
    config_path, config = write_config(tmp_path, Path(undisturbed.data.train[0].path))
    launches = [launch("n1", config_path), launch("n2", config_path)]
    wait_for(config, 2, launches[0])
    launches[1].send(signal.SIGTERM)
    assert [each.wait() for each in launches] == [75, 75], launches[0].log[-6000:]
    end = json.loads((config.run_dir / "exit.json").read_text())
    assert (end["code"], end["reason"]) == (75, "stopped by SIGUSR2 on rank 1")
    assert committed_steps(config.run_dir)[-1] == end["step"] < NUM_STEPS
    launches = [launch("n1", config_path), launch("n2", config_path)]
    assert [each.wait() for each in launches] == [0, 0], launches[0].log[-6000:]
    assert_as_undisturbed(config, undisturbed)
