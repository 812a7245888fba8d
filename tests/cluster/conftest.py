"""`cluster`: a real SLURM of two nodes for the whole session; cluster.py says what it is. `undisturbed`: a run on it.

AVFF_CLUSTER=FOLDER     uses the cluster that is there (or is started there), and leaves it running
AVFF_KEEP_CLUSTER=1     leaves the one that the tests started, and says where
AVFF_REQUIRE_CLUSTER=1  fails where this machine cannot have one; without it, its tests are skipped
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, start
from little_runs import build_shards
from machine import UnavailableError
from two_ranks import Launch, write_config

from avff.config import Config


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    given = os.environ.get("AVFF_CLUSTER")
    folder = Path(given or tempfile.mkdtemp(prefix="avff-slurm-", dir="/tmp"))  # short: sockets
    try:
        started = start(folder)
    except UnavailableError as error:
        if os.environ.get("AVFF_REQUIRE_CLUSTER") == "1":
            pytest.fail(str(error))
        pytest.skip(f"no SLURM: {error}")
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # of `timeout` or CI: stop the cluster, too
    try:
        yield started
    finally:
        signal.signal(signal.SIGTERM, terminated)
        if given or os.environ.get("AVFF_KEEP_CLUSTER") == "1":
            print(f"\nthe cluster goes on: python tests/cluster/cluster.py stop {folder}")
        else:
            started.stop()
            if not request.session.testsfailed:
                shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _leave_the_cluster_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cancels the jobs that a test left behind, and brings its lost nodes back."""
    if "cluster" not in request.fixturenames:
        yield
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    before = set(_jobs(cluster))
    yield
    if left := set(_jobs(cluster)) - before:
        for words in (["--full", "--signal=KILL"], []):
            # One that is just ending may be gone by now, which scancel calls an error.
            subprocess.run(["scancel", "--quiet", *words, *left], env=cluster.environment, check=False)
    for node in cluster.nodes:
        cluster.restore(node)


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The run of two_ranks.py to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config_path, config = write_config(folder, build_shards(folder / "shards"))
    launches = [Launch(cluster, node, config_path) for node in cluster.nodes]
    assert [launch.wait() for launch in launches] == [0, 0], launches[0].log[-6000:]
    return config


def _jobs(cluster: Cluster) -> list[str]:
    return cluster.run("squeue", "--noheader", "--format=%A").split()
