"""Saving on two ranks: beside training, together or not at all, on full disks (a real one of a few pages)."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 400 kB; None where this user may not mount one."""
    path = tmp_path_factory.mktemp("disk") / "small"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", path], check=False, capture_output=True)
    if done.returncode:
        yield None
        return
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture(scope="module")
def results(launch, tmp_path_factory, small_disk) -> list[dict[str, Any]]:
    """What each rank found, by scenario."""
    folder = tmp_path_factory.mktemp("saver")
    launch("saver_worker.py", 2, folder / "results.json", folder / "runs", small_disk or "")
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(params=["everywhere", "in the commit", "on rank 1"])
def full(request, results) -> list[dict[str, Any]]:
    if "disk_full" not in results[0]:
        pytest.skip("this user may not mount a file system, so no disk can be filled")
    return [{**found["disk_full"][request.param], "where": request.param} for found in results]


@pytest.fixture(params=[0, 1], ids=["rank0", "rank1"])
def found(request, results) -> dict[str, Any]:
    return results[request.param]


def test_what_was_begun_is_saved_while_training_goes_on(found):
    overlapped = found["overlapped"]
    assert overlapped["begun"] == [] and overlapped["while_held"] == [None, None, None]
    assert overlapped["folders_while_held"] in ([], ["step-2.tmp"])
    outcome = overlapped["outcome"]
    assert (outcome["step"], outcome["committed"], outcome["problems"]) == (2, True, [])
    assert overlapped["training_went_on"] and overlapped["saved_is_begun"]
    assert overlapped["problems"] == [] and overlapped["after"] is None


def test_outcomes_are_the_same_on_every_rank(results):
    one, other = (found["overlapped"]["outcome"] for found in results)
    assert one == other
    assert 0 < one["blocked_seconds"] < one["total_seconds"]


def test_nobody_commits_before_the_slowest_rank_has_written(results):
    assert [found["one_slow_rank"]["votes"] for found in results] == [[1.0], [0.0]]
    for found in results:
        assert found["one_slow_rank"]["waiting"] == [None, None, None]
        assert found["one_slow_rank"]["committed"]


def test_a_pending_save_is_finished_before_the_next_begins(found):
    outcomes = found["back_to_back"]["outcomes"]
    assert outcomes == [[], [[1, True, []]], [[2, True, []]], [[3, True, []]]]
    assert found["back_to_back"]["folders"] == ["step-2", "step-3"]


def test_logs_that_cannot_be_made_durable_drop_the_save_on_all_ranks(found):
    failed = found["logs_not_durable"]
    assert not failed["outcome"]["committed"]
    assert failed["outcome"]["problems"] == ["rank 1: [Errno 28] No space left on device: 'metrics.jsonl'"]
    assert failed["folders"] == []


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_rewound_run_repeats_to_the_bit(found, stage):
    assert found["rewound"][stage] == {
        "set_aside": [5],
        "folders": ["step-3", "step-5.rewound-1"],
        "loaded": True,
        "repeated": True,
        "updates": True,
    }


def test_a_full_disk_drops_one_save_and_nothing_else(full):
    assert full[0] == full[1]
    for found in full:
        assert found["committed"] == [True, False, True]
        assert found["left"][0] == ["step-2"], "rank 0 sees the disk that the run is on"
        assert found["newest"] == "step-2" and found["old_one_is_whole"]
        assert found["training_is_undisturbed"]
        assert found["folders"] == [["step-5"], ["step-5"]]


def test_a_full_disk_is_named_with_rank_and_file(full):
    problems, where = full[0]["problems"], full[0]["where"]
    expected = {
        "everywhere": ["rank 0", "rank 1"],
        "in the commit": ["rank 0"],
        "on rank 1": ["rank 1"],
    }
    assert [problem.partition(":")[0] for problem in problems] == expected[where]
    assert all(
        "No space left on device" in problem and str(Path("checkpoints/step-3.tmp")) in problem for problem in problems
    )
