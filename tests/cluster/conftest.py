"""`cluster`: a real SLURM of two nodes for the whole session; cluster.py says what it is.

AVFF_CLUSTER=FOLDER     uses the cluster that is there (or is started there), and leaves it running
AVFF_KEEP_CLUSTER=1     leaves the one that the tests started, and says where
AVFF_REQUIRE_CLUSTER=1  fails where this machine cannot have one; without it, its tests are skipped
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, start
from machine import UnavailableError


@pytest.fixture(scope="session")
def _session_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    given = os.environ.get("AVFF_CLUSTER")
    folder = Path(given or tempfile.mkdtemp(prefix="avff-slurm-", dir="/tmp"))  # sockets: short paths
    try:
        cluster = start(folder)
    except UnavailableError as error:
        if os.environ.get("AVFF_REQUIRE_CLUSTER") == "1":
            pytest.fail(str(error))
        pytest.skip(f"no SLURM: {error}")
    try:
        yield cluster
    finally:
        if given or os.environ.get("AVFF_KEEP_CLUSTER") == "1":
            print(f"\nthe cluster goes on: python tests/cluster/cluster.py stop {folder}")
        else:
            cluster.stop()
            if not request.session.testsfailed:
                shutil.rmtree(folder)


@pytest.fixture
def cluster(_session_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, all of its nodes up; jobs that a test leaves behind are cancelled."""
    before = set(_jobs(_session_cluster))
    yield _session_cluster
    if left := set(_jobs(_session_cluster)) - before:
        _session_cluster.run("scancel", "--signal=KILL", *left)
        _session_cluster.run("scancel", *left)
    for node in _session_cluster.nodes:
        _session_cluster.restore(node)


def _jobs(cluster: Cluster) -> list[str]:
    return cluster.run("squeue", "--noheader", "--format=%A").split()
