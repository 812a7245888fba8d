"""`srun avff doctor` on real nodes, one of which lacks what training needs."""

import json
import subprocess
import sys

import pytest
from little_runs import build_shards, make_config

from avff.config import save_config

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TIMEOUT_SECONDS = 1800


def test_a_node_without_the_shards_is_found_before_a_job_is_burnt(cluster, tmp_path):
    """Shards in /dev/shm are there on the node alone whose memory it is: what a forgotten copy looks like."""
    source = build_shards(tmp_path / "shards")
    local = "/dev/shm/avff-doctor-shards"
    cluster.exec("n1", ["cp", "-r", source, local])
    save_config(make_config(local, tmp_path / "runs"), tmp_path / "config.yaml")
    srun = ["srun", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2", sys.executable, "-P"]
    doctor = ["-m", "avff", "doctor", str(tmp_path / "config.yaml"), "engine.micro_batch_size=1", "--json"]
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*srun, *doctor], env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    finally:
        cluster.exec("n1", ["rm", "-r", local])
    assert done.returncode == 2, done.stderr
    report = json.loads(done.stdout)
    assert report["title"] == "avff doctor: 4 ranks on 2 nodes"
    failed = {
        name: {check for check, answer in answers.items() if answer["status"] == "FAIL"}
        for name, answers in report["nodes"].items()
    }
    assert failed == {"n1": set(), "n2": {"data.train[0]", "decoding"}}
    assert f"{local}: no such shard directory" in report["nodes"]["n2"]["data.train[0]"]["value"]
    assert {answer["status"] for answer in report["together"].values()} == {"ok"}
    assert report["together"]["all-reduce"]["value"].startswith("4 ranks, gloo")
    assert report["together"]["links"]["value"] == "2 links from node to node"
