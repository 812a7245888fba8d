"""The place of a run folder: locks and tokens between real processes."""

import subprocess
import sys

import pytest

from avff.doctor import run_folder
from avff.doctor.check import Status

TRY_LOCK = "import sys; from pathlib import Path; from avff.doctor.run_folder import lock; print(lock(Path(sys.argv[1]), 1).value)"


def lock_from_another_process(folder) -> str:
    return subprocess.run([sys.executable, "-c", TRY_LOCK, folder], capture_output=True, text=True, check=True).stdout


def test_the_lock_holds_while_the_probe_is_there_and_nothing_is_left_of_it(tmp_path):
    with run_folder.probe(tmp_path / "runs" / "stage1") as folder:
        assert folder.parent == tmp_path
        assert "POSIX locks hold" in lock_from_another_process(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_does_not_hold_is_found(tmp_path):
    (tmp_path / "lock").touch()
    assert "could be taken a second time" in lock_from_another_process(tmp_path)


def test_the_probe_lies_in_a_run_folder_that_is_there(tmp_path):
    run_dir = tmp_path / "runs" / "stage1"
    run_dir.mkdir(parents=True)
    with run_folder.probe(run_dir) as folder:
        assert folder.parent == run_dir
    assert list(run_dir.iterdir()) == []


def test_tokens_are_seen_both_ways(tmp_path):
    with run_folder.probe(tmp_path) as folder:
        assert run_folder.shared_folder(folder, rank=4).status is Status.OK
        assert run_folder.missing_tokens(folder, [0, 4]) == []


def test_a_folder_that_is_not_shared_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "VISIBLE_SECONDS", 0.0)
    answer = run_folder.shared_folder(tmp_path / "elsewhere", rank=4)
    assert answer.status is Status.FAIL
    assert "runs_dir" in answer.fix
    with run_folder.probe(tmp_path) as folder:
        assert run_folder.missing_tokens(folder, [0, 4, 8]) == [4, 8]


@pytest.mark.parametrize(("free", "status"), [(100, Status.OK), (40, Status.WARN), (19, Status.FAIL)])
def test_room_for_checkpoints(free, status):
    assert run_folder.judge_free_space(free * 10**9, checkpoint=10 * 10**9, kept=50 * 10**9).status is status


def test_a_save_that_takes_longer_than_the_grace_is_noticed():
    fast, slow = (run_folder.judge_speed(speed, share_bytes=3e9, grace_seconds=30) for speed in (1e9, 5e7))
    assert fast.status is Status.OK
    assert slow.status is Status.WARN
    assert "engine.grace_seconds=180" in slow.fix


def test_writing_is_measured_and_leaves_nothing(tmp_path, tiny_config):
    answer = run_folder.write_speed(tmp_path, tiny_config(), num_nodes=1)
    assert answer.measures[0].number > 0
    assert list(tmp_path.iterdir()) == []
