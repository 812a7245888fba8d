"""launch/sbatch.sh as real jobs: queued again after what is not the end, and not after what is."""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from daemons import wait_until
from holding import held_until_told
from two_ranks import ROOT, assert_as_undisturbed, wait_for_step, write_config

from avff.config import Config
from avff.errors import LOST_RANK_EXIT_CODE, PREEMPTED_EXIT_CODE, REFUSED_EXIT_CODE
from avff.json_lines import read_lines
from avff.run_folder import committed_steps

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TWO_TASKS = ["--nodes=2", "--ntasks-per-node=1", "--partition=low", "--time=60"]


@pytest.fixture
def config(undisturbed: Config, tmp_path: Path) -> Config:
    return write_config(tmp_path, Path(undisturbed.data.train[0].path))[1]


def submit(cluster: Cluster, folder: Path, *words: str, cwd: Path = ROOT) -> str:
    """Returns the id of a job that writes to `folder/log`."""
    script = [f"--output={folder / 'log'}", ROOT / "launch/sbatch.sh", folder / "config.yaml"]
    return cluster.run("sbatch", "--parsable", *TWO_TASKS, *script, *words, cwd=cwd)


def has_ended(cluster: Cluster, job: str) -> bool:
    return cluster.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")


def wait_for_start(config: Config, number: int) -> None:
    wait_until(lambda: len(read_lines(config.run_dir / "starts.jsonl")) == number, f"start {number}")


def test_preempted_and_crashed_it_ends_as_if_undisturbed(cluster, config, undisturbed, tmp_path):
    log = tmp_path / "log"
    job = submit(cluster, tmp_path)
    wait_for_step(config, 2, lambda: has_ended(cluster, job), log)
    urgent = ["--partition=high", "--nodes=1", "--exclusive", "--output=/dev/null"]
    with held_until_told(cluster, job, config.run_dir):
        cluster.run("sbatch", *urgent, input="#!/bin/sh\nsleep 1\n")
    wait_for_start(config, 2)
    wait_for_step(config, committed_steps(config.run_dir)[-1] + 2, lambda: has_ended(cluster, job), log)
    first_rank = json.loads((config.run_dir / "lock").read_text())
    cluster.exec(first_rank["host"], ["kill", "-KILL", str(first_rank["pid"])])
    cluster.wait_for([job], ["COMPLETED"])
    ends = [start["last_end"]["code"] for start in read_lines(config.run_dir / "starts.jsonl")[1:]]
    assert ends == [PREEMPTED_EXIT_CODE, LOST_RANK_EXIT_CODE], log.read_text()
    assert cluster.job(job)["Restarts"] == "2"
    assert_as_undisturbed(config, undisturbed)


def test_refused_it_is_not_queued_again(cluster, config, tmp_path):
    job = submit(cluster, tmp_path, "optim.num_step=1")
    cluster.wait_for([job], ["FAILED"])
    assert cluster.job(job)["ExitCode"] == f"{REFUSED_EXIT_CODE}:0"
    assert "did you mean optim.num_steps?" in (tmp_path / "log").read_text()
    assert cluster.job(job)["Restarts"] == "0"


def test_broken_before_a_rank_can_say_so_it_is_not_queued_again(cluster, config, tmp_path):
    (tmp_path / "avff").mkdir()
    (tmp_path / "avff" / "__init__.py").write_text("import module_that_is_not_installed\n")
    job = submit(cluster, tmp_path, cwd=tmp_path)
    cluster.wait_for([job], ["FAILED"])
    assert "module_that_is_not_installed" in (tmp_path / "log").read_text()
    assert cluster.job(job)["Restarts"] == "0"


def test_cancelled_it_is_not_queued_again(cluster, config, tmp_path):
    job = submit(cluster, tmp_path)
    wait_for_step(config, 2, lambda: has_ended(cluster, job), tmp_path / "log")
    cluster.run("scancel", job)
    left = ["squeue", "--noheader", "--jobs", job, "--states", "RUNNING,COMPLETING"]
    wait_until(lambda: not cluster.run(*left), "its processes to end")
    assert (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("CANCELLED", "0")
    assert not list(ROOT.glob(f"slurm-{job}*"))
