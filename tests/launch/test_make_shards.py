"""launch/make_shards.py without SLURM: what it refuses, what it would submit, and the same jobs on this machine."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from little_media import content, write_clips

from avff.build_config import BuildConfig
from avff.building.build import build_parts, build_shards, claim
from avff.building.locks import hold
from avff.building.plan import BuildPlan, Share, plan_build
from avff.building.sources import read_sources
from launch import make_shards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Four files that can be decoded and one that cannot."""
    return write_clips(tmp_path_factory.mktemp("media"), 4)


@pytest.fixture
def words(media, tmp_path) -> list[str]:
    """What a user types, but for --jobs."""
    where = ["--input", str(media), "--output", str(tmp_path / "shards"), "--runs-dir", str(tmp_path / "runs")]
    return [*where, "--mode", "frame", "--shard-bytes", "60000"]


def plan(media: Path, output: Path) -> BuildPlan:
    return plan_build(read_sources(media), output, BuildConfig(mode="frame"), shard_bytes=60000)


def test_every_mistake_is_told_at_once_and_nothing_is_left(words, tmp_path, capsys):
    more = [
        "--jobs",
        "2",
        "--executor",
        "local",
        "--minutes",
        "soon",
        "--partitoin",
        "cpu",
        "--sbatch",
        "reservation=x",
    ]
    assert make_shards.main([*words, *more]) == 2
    error = capsys.readouterr().err
    assert "--partitoin: no such option; did you mean --partition?" in error
    assert "--minutes: 'soon' is not a whole number" in error
    assert "--sbatch: 'reservation=x' is no option of sbatch" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "0"], "--jobs 0, --at-once 256: use 1 or more"),
        (["--jobs", "2", "--nodes", "3"], "3 nodes with 1 tasks: a job builds its share in one task; use --jobs"),
        (["--jobs", "2", "--set", "crop_facto=2"], "did you mean crop_factor"),
    ],
)
def test_what_no_job_can_do_is_refused(words, tmp_path, capsys, more, message):
    assert make_shards.main([*words, "--executor", "local", *more]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_one_line_says_so(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_shards.main([*words, "--jobs", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no SLURM here" in line and "--executor local" in line


def test_a_dry_run_shows_both_scripts_and_writes_nothing(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    asked = ["--jobs", "3", "--cpus-per-task", "6", "--partition", "cpu", "--dry-run"]
    assert make_shards.main([*words, *asked]) == 0
    text = capsys.readouterr().out
    array, merge = text.split("#!/bin/bash")[1:]
    assert "#SBATCH --array=0-2%3" in array and "#SBATCH --cpus-per-task=6" in array
    assert "#SBATCH --dependency=afterany:ARRAY" in merge and "#SBATCH --cpus-per-task=1" in merge
    assert "#SBATCH --partition=cpu" in array and "#SBATCH --partition=cpu" in merge
    for index in range(3):
        assert f"--num-workers 6 {shlex.join(words_of_tool(words))} --share {index}/3" in array
    assert f"{shlex.join(words_of_tool(words))} --merge-shares 3" in merge
    assert list(tmp_path.iterdir()) == []


def words_of_tool(words: list[str]) -> list[str]:
    return [word for word in words if word != "--runs-dir" and not word.endswith("/runs")]


def test_the_tool_gets_its_own_options_as_typed(words):
    typed = ["--jobs=3", "--set", "faces.max_tracks=1", "--setup", "module load x", "--num-workers=2", "--exclusive"]
    assert make_shards.tool_words([*typed, *words]) == [
        *("--set", "faces.max_tracks=1", "--num-workers=2"),
        *words_of_tool(words),
    ]


def test_status_counts_each_share_and_only_shares_that_lack_something_get_a_job(media, words, tmp_path, capsys):
    output = tmp_path / "shards"
    build_parts(plan(media, output), share=Share(1, 3))
    assert make_shards.main([*words, "--jobs", "3", "--executor", "local", "--status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{output}: 2 of 5 sources are built", "share 0/3: 0 of 2", "share 2/3: 0 of 1"]
    assert make_shards.main([*words, "--jobs", "3", "--executor", "local", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "--share 0/3" in text and "--share 2/3" in text and "--share 1/3" not in text


def test_more_jobs_than_sources_leave_the_rest_out(words, capsys):
    assert make_shards.main([*words, "--jobs", "99", "--executor", "local", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("--share ") == 5


def test_what_is_built_is_said_and_left_alone(media, words, tmp_path, capsys):
    build_shards(plan(media, tmp_path / "shards"))
    assert make_shards.main([*words, "--jobs", "3", "--executor", "local"]) == 0
    text = capsys.readouterr().out
    assert "already built with these arguments" in text and "UNDECODABLE            1  broken.mp4" in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_on_this_machine_the_result_is_that_of_one_process(media, words, tmp_path, capfd):
    build_with_the_tool(words, tmp_path / "one")
    assert make_shards.main([*words, "--jobs", "2", "--executor", "local"]) == 0
    assert "4 samples of 4 sources" in capfd.readouterr().out
    assert content(tmp_path / "shards") == content(tmp_path / "one")


def build_with_the_tool(words: list[str], output: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools/make_shards.py"), *words_of_tool(words), "--output", str(output)]
    subprocess.run([*tool, "--num-workers", "0"], check=True, capture_output=True)


@pytest.mark.slow
def test_a_share_that_fails_is_named_and_the_same_line_goes_on(media, words, tmp_path, capfd):
    asked = plan(media, tmp_path / "shards")
    with hold(asked.parts, shared=True):
        claim(asked)
    in_the_way = asked.parts / "part-00000001.begun"
    in_the_way.mkdir()
    line = [*words, "--jobs", "2", "--executor", "local", "--num-workers", "0"]
    assert make_shards.main(line) == 2
    error = capfd.readouterr().err
    assert "share 1/2 ended with code 1, its log is" in error and f"Is a directory: '{in_the_way}'" in error
    assert f"share 1/2 lacks 2, such as {asked.tasks[1].source.name}, {asked.tasks[3].source.name}" in error
    assert f"it ended while it read {asked.tasks[1].source.name}" in error and "share 0/2" not in error
    in_the_way.rmdir()
    assert make_shards.main(line) == 0
    build_with_the_tool(words, tmp_path / "one")
    assert content(tmp_path / "shards") == content(tmp_path / "one")


@pytest.mark.slow
def test_a_signal_ends_the_processes_of_this_machine_too(words, tmp_path):
    command = [sys.executable, str(ROOT / "launch/make_shards.py"), *words, "--jobs", "2", "--executor", "local"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 75, error
    assert psutil.wait_procs(children, timeout=300)[1] == []
