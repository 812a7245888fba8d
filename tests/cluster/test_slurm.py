"""launch/slurm.py with real jobs: whatever ends a job, its run goes on as if nothing had happened."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from compare_runs import differences
from daemons import wait_until
from holding import held_until_told
from little_runs import build_shards
from wandb_checks import assert_one_wandb_run

from avff.json_lines import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
NUM_STEPS = 50
TWO_BY_TWO = ["--nodes=2", "--tasks-per-node=2", "--cpus-per-task=2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards") / "little")


def overrides(shards: Path, runs_dir: Path) -> list[str]:
    """Returns what turns the demo's first stage into a run of less than a minute on four ranks, on little shards."""
    source = f"[{{path: {shards}}}]"
    return [
        f"runs_dir={runs_dir}", f"data.train={source}", f"data.validation={source}",
        "clip.frames_per_second=5", "clip.hop_samples=200", "engine.micro_batch_size=4",
        f"optim.num_steps={NUM_STEPS}", "engine.checkpoint_every_steps=20",
        "logging.log_every_steps=1", "logging.wandb=offline", "logging.progress=false",
    ]  # fmt: skip


def launch(cluster: Cluster, *words: str, code: int = 0) -> str:
    """Runs launch/slurm.py on the demo's first stage; returns what it prints, or its refusal."""
    command = [sys.executable, ROOT / "launch/slurm.py", ROOT / "configs/demo/stage1.yaml", *words]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def jobs_in(text: str) -> list[str]:
    return re.findall(r"^job (\S+):", text, re.MULTILINE)


def last_step(run_dir: Path) -> int:
    lines = read_lines(run_dir / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0


def log_of(run_dir: Path) -> str:
    record = json.loads((run_dir / "job.json").read_text())
    return Path(record["folder"], f"{record['job_id']}_0_log.out").read_text()


def ends_of(run_dir: Path) -> list[int]:
    record = json.loads((run_dir / "job.json").read_text())
    lines = Path(record["folder"], f"{record['job_id']}_ends.jsonl").read_text().splitlines()
    return [json.loads(line)["code"] for line in lines]


def wait_for_step(run_dir: Path, step: int) -> None:
    wait_until(lambda: last_step(run_dir) >= step, f"step {step} of {run_dir}")


def test_timed_out_preempted_and_without_power_it_ends_as_if_undisturbed(cluster, shards, tmp_path):
    """The same job meets all three; each time it is queued again by itself and goes on in the same run folder."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    limits = ["--minutes=60", "--signal-seconds=60"]
    [job] = jobs_in(launch(cluster, *TWO_BY_TWO, "--partition=low", *limits, *overrides(shards, rough)))
    run_dir = rough / "stage1"

    wait_for_step(run_dir, 1)
    with held_until_told(cluster, job, run_dir):
        [undisturbed] = jobs_in(launch(cluster, *TWO_BY_TWO, "--minutes=60", *overrides(shards, calm)))
        cluster.wait_for([undisturbed], ["COMPLETED"])
        cluster.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes_so_far(cluster, job) + 2}")
    wait_until(lambda: restarts(cluster, job), "the job to be queued again")
    # A slow machine would be stopped time and again.
    cluster.run("scontrol", "update", f"jobid={job}", "timelimit=60")
    assert "stopped by SIGUSR2" in log_of(run_dir)
    cluster.wait_for([job], ["RUNNING"])
    assert "launch/slurm.py: " + str(run_dir) in launch(cluster, *overrides(shards, rough), code=2), "a second job"

    wait_for_step(run_dir, last_step(run_dir) + 3)
    preempt(cluster, job, run_dir)
    wait_for_step(run_dir, last_step(run_dir) + 3)
    lose_power(cluster, job, "n1")  # where rank 0 and the batch script are
    cluster.wait_for([job], ["COMPLETED"])
    ends = ends_of(run_dir)  # without that of the start without power, which could not say how it ended
    assert ends[-1] == 0 and set(ends[:-1]) == {75} and len(ends) >= 3
    assert len((run_dir / "starts.jsonl").read_text().splitlines()) == len(ends) + 1
    assert differences(run_dir, calm / "stage1") == []
    assert_one_wandb_run(run_dir, num_starts=3)


def restarts(cluster: Cluster, job: str) -> int:
    return int(cluster.job(job)["Restarts"])


def minutes_so_far(cluster: Cluster, job: str) -> int:
    """Returns for how many whole minutes a job has been running."""
    hours, minutes, _ = cluster.job(job)["RunTime"].split(":")
    return 60 * int(hours) + int(minutes)


def preempt(cluster: Cluster, job: str, run_dir: Path) -> None:
    before = restarts(cluster, job)
    urgent = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    with held_until_told(cluster, job, run_dir):
        high = cluster.run("sbatch", "--parsable", *urgent, input="#!/bin/sh\nsleep 1\n")
    cluster.wait_for([high], ["COMPLETED"])
    cluster.wait_for([job], ["RUNNING"])
    assert restarts(cluster, job) == before + 1


def lose_power(cluster: Cluster, job: str, node: str) -> None:
    before = restarts(cluster, job)
    cluster.fail(node)
    wait_until(lambda: restarts(cluster, job) > before, "SLURM to miss the node")
    cluster.restore(node)


def test_a_sweep_is_one_array_and_a_cancelled_run_does_not_come_back(cluster, shards, tmp_path):
    sweep = "--sweep=optim.num_steps=3,1000"
    words = [*overrides(shards, tmp_path), "engine.micro_batch_size=16", "optim.warmup_steps=1"]
    would = launch(cluster, sweep, "--dry-run", *words)
    said = launch(cluster, sweep, *words)
    jobs = jobs_in(said)
    run_dirs = [tmp_path / f"stage1-num_steps={num_steps}" for num_steps in (3, 1000)]
    array = jobs[0].partition("_")[0]
    assert said.splitlines()[:2] == [f"job {array}_{index}: {run_dir}" for index, run_dir in enumerate(run_dirs)]

    wait_for_step(run_dirs[1], 1)
    cluster.run("scancel", jobs[1])
    cluster.wait_for([jobs[1]], ["CANCELLED"])
    assert cluster.job(jobs[1])["Restarts"] == "0"
    cluster.wait_for([jobs[0]], ["COMPLETED"])
    assert last_step(run_dirs[0]) == 3
    folder = Path(json.loads((run_dirs[0] / "job.json").read_text())["folder"])
    script = (folder / f"{array}_submission.sh").read_text()
    assert script in re.sub(r"\d{8}-\d{6}-", folder.name[:16], would), "not what --dry-run had shown"


def test_a_crash_loop_ends(cluster, shards, tmp_path):
    """Something kills each start once it is recorded: two starts crash, the third is refused."""
    run_dir = tmp_path / "stage1"
    is_recorded = f"[ $(wc -l <{run_dir}/starts.jsonl) -gt ${{SLURM_RESTART_COUNT:-0}} ]"
    pid = f"$(sed 's/.*\"pid\": \\([0-9]*\\).*/\\1/' {run_dir}/lock)"
    kill = f"(until {is_recorded} && kill -9 {pid}; do sleep 0.2; done) 2>/dev/null &"
    words = [*overrides(shards, tmp_path), "engine.micro_batch_size=16", "faults.max_failed_starts=2"]
    [job] = jobs_in(launch(cluster, f"--setup={kill}", *words))
    cluster.wait_for([job], ["FAILED"])
    assert cluster.job(job)["ExitCode"] == "3:0"
    assert ends_of(run_dir) == [137, 137, 3]
    assert "the last 2 starts" in log_of(run_dir)
