"""launch/make_shards.py with real jobs: an array and its merge give the bytes of one process, whatever befalls them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from daemons import wait_until
from little_media import content, write_clips

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
NUM_FILES = 120
"""So many that a job can be stopped between the first of its share and the last."""
OVER = ["COMPLETED", "FAILED", "CANCELLED"]
RESOURCES = ["--jobs=3", "--cpus-per-task=1", "--minutes=20"]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Options for many little files, one of them broken."""
    folder = write_clips(tmp_path_factory.mktemp("media"), NUM_FILES)
    return ["--input", str(folder), "--mode", "frame", "--shard-bytes", "1000000", "--profile", "evidence"]


@pytest.fixture(scope="module")
def built(words, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of them."""
    output = tmp_path_factory.mktemp("one") / "shards"
    tool = [sys.executable, str(ROOT / "tools/make_shards.py"), *words, "--output", str(output), "--num-workers", "0"]
    subprocess.run(tool, check=True, capture_output=True)
    return content(output)


def launch(cluster: Cluster, words: list[str], folder: Path, *more: str, code: int = 0) -> str:
    where = ["--output", str(folder / "shards"), "--runs-dir", str(folder / "runs")]
    command = [sys.executable, str(ROOT / "launch/make_shards.py"), *RESOURCES, *words, *where, *more]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def jobs_in(text: str) -> list[str]:
    """Returns the jobs of the shares, and last that of the merge."""
    return re.findall(r"^job (\S+):", text, re.MULTILINE)


def log_of(folder: Path, job: str) -> str:
    return max((folder / "runs/jobs").iterdir()).joinpath(f"{job}_0_log.out").read_text()


def test_an_array_gives_the_bytes_of_one_process_also_when_a_job_of_it_is_told_to_stop(cluster, words, built, tmp_path):
    jobs = jobs_in(launch(cluster, words, tmp_path))
    parts = tmp_path / "shards/.parts"
    assert len(jobs) == 4
    assert "waits for its shares already" in launch(cluster, words, tmp_path, code=2)
    wait_until(lambda: any(int(path.stem[5:]) % 3 == 1 for path in parts.glob("part-*.json")), "a part of share 1")
    cluster.run("scancel", "--signal=USR2", jobs[1])  # as SLURM does before the time limit
    cluster.wait_for(jobs[-1:], OVER)
    assert [cluster.job(job)["JobState"] for job in jobs] == ["COMPLETED"] * 4
    assert [cluster.job(job)["Restarts"] for job in jobs] == ["0", "1", "0", "0"]
    log = log_of(tmp_path, jobs[1])
    assert "stopped by SIGUSR2; finished sources are kept" in log and "0 built now" not in log
    assert content(tmp_path / "shards") == built
    assert "UNDECODABLE            1  broken.mp4" in log_of(tmp_path, jobs[-1])
    assert "already built" in launch(cluster, words, tmp_path)


def test_a_job_that_fails_is_named_by_the_last_one_and_made_up_for_by_the_same_line(cluster, words, built, tmp_path):
    broken_node = 'if [ "$SLURM_ARRAY_TASK_ID" = 1 ]; then echo "no such module"; exit 1; fi'
    jobs = jobs_in(launch(cluster, words, tmp_path, "--setup", broken_node))
    cluster.wait_for(jobs, OVER)
    assert [cluster.job(job)["JobState"] for job in jobs] == ["COMPLETED", "FAILED", "COMPLETED", "FAILED"]
    assert re.search(rf"share 1/3 lacks {NUM_FILES // 3}, such as .*\.mov", log_of(tmp_path, jobs[-1]))
    status = launch(cluster, words, tmp_path, "--status")
    assert status.splitlines()[1:] == [f"share 1/3: 0 of {NUM_FILES // 3}"]
    again = jobs_in(launch(cluster, words, tmp_path))
    assert len(again) == 2
    cluster.wait_for(again, OVER)
    assert content(tmp_path / "shards") == built
