"""`avff doctor` as users start it: real ranks, and nodes with a host name, mounts and limits of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_ports

from avff.config import Config, save_config

pytestmark = pytest.mark.slow

DOCTOR = [sys.executable, "-m", "avff", "doctor"]
TIMEOUT_SECONDS = 900


@pytest.fixture
def made(tiny_config, shard_directory, tmp_path) -> Config:
    """A config with its shards in `tmp_path / "shards"`, saved as `tmp_path / "config.yaml"`."""
    shards = shutil.copytree(shard_directory.path, tmp_path / "shards")
    source = [{"path": str(shards)}]
    config = tiny_config(data={"train": source, "validation": source, "num_workers": 4})
    save_config(config, tmp_path / "config.yaml")
    return config


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts one rank of two, on a node of its own name: `start(rank, config_path, prepare="", **environment)`.

    `prepare` is shell code that runs there first; what it mounts nobody else sees.
    """
    may = subprocess.run(["unshare", "--mount", "--uts", "hostname", "n1"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip(f"no nodes of our own on this machine: {may.stderr.decode().strip()}")
    [port] = free_ports(1)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    started = []

    def run(rank: int, config_path: Path, prepare: str = "", limit_seconds: int = 60, **environment: str):
        command = [*DOCTOR, str(config_path), "--json", "--limit-seconds", str(limit_seconds)]
        node = [
            "unshare",
            "--mount",
            "--uts",
            "bash",
            "-ec",
            f'hostname n{rank + 1}; {prepare or ":"}; exec "$@"',
            "node",
        ]
        own = {"RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*node, *command],
            env={**os.environ, **shared, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def report_of(process: subprocess.Popen) -> tuple[int, dict[str, Any]]:
    output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert output, errors
    return process.returncode, json.loads(output)


def failed(answers: dict[str, Any]) -> set[str]:
    return {name for name, check in answers.items() if check["status"] == "FAIL"}


def test_two_ranks_of_one_good_machine(made, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "avff", "doctor", str(tmp_path / "config.yaml"), "data.num_workers=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "avff doctor: 2 ranks on 1 node"
    assert any(line.startswith("ok    all-reduce") and "2 ranks, gloo" in line for line in lines)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(".avff-doctor-*"))


def test_what_is_wrong_on_one_node_is_named(made, tmp_path, start):
    """Node n2 sees empty folders where shards and runs lie, its /dev/shm is small, and few files may be open."""
    made.run_dir.mkdir(parents=True)
    hidden = [tmp_path / "shards", made.run_dir]
    prepare = "; ".join(f"mount -t tmpfs -o size=1m none {path}" for path in (*hidden, "/dev/shm")) + "; ulimit -n 258"
    processes = [start(0, tmp_path / "config.yaml"), start(1, tmp_path / "config.yaml", prepare)]
    code, report = report_of(processes[0])
    assert (code, processes[1].wait(TIMEOUT_SECONDS)) == (2, 0)
    good, bad = report["nodes"]["n1"], report["nodes"]["n2"]
    broken = {"data.train[0]", "decoding", "run folder", "shared memory", "open files"}
    # Both ranks are one machine, whose own address is not one that two nodes could use.
    assert failed(good) == {"main address"}
    assert failed(bad) == {"main address"} | broken
    assert "has no manifest.json" in bad["data.train[0]"]["value"]
    assert bad["open files"]["value"] == "258 may be open, a rank needs 260"
    assert all(bad[name]["fix"] for name in broken)
    assert failed(report["together"]) == {"run folder, seen"}
    assert report["together"]["run folder, seen"]["value"].endswith("does not see what n2 writes")
    assert report["together"]["all-reduce"]["value"].startswith("2 ranks, gloo")


@pytest.mark.faults
def test_a_rank_that_cannot_join_is_named(made, tmp_path, start):
    processes = [
        start(0, tmp_path / "config.yaml", limit_seconds=20),
        start(1, tmp_path / "config.yaml", limit_seconds=20, GLOO_SOCKET_IFNAME="nosuch0"),
    ]
    code, report = report_of(processes[0])
    assert code == 2
    assert "interfaces" in failed(report["nodes"]["n2"])
    assert report["together"]["all-reduce"]["value"].startswith("rank 1 (n2) failed at 'join'")


@pytest.mark.faults
@pytest.mark.parametrize("present", [0, 1])
def test_a_rank_that_never_comes_is_waited_for_in_vain_only_for_a_while(made, tmp_path, start, present):
    code, report = report_of(start(present, tmp_path / "config.yaml", limit_seconds=3))
    assert code == 2
    if present == 0:
        assert report["together"]["ranks"]["value"] == "rank 1 of 2 did not come"
    else:
        assert "MASTER_ADDR" in report["nodes"]["n2"]["meeting"]["fix"]


def test_a_full_disk_is_found_before_the_first_checkpoint(made, tmp_path, start):
    made.run_dir.mkdir(parents=True)
    prepare = f"mount -t tmpfs -o size=1m none {made.run_dir}"
    _, report = report_of(start(0, tmp_path / "config.yaml", prepare, WORLD_SIZE="1"))
    assert failed(report["nodes"]["n1"]) == {"free space", "write speed"}
    assert "No space left on device" in report["nodes"]["n1"]["write speed"]["value"]
