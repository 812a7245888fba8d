import resource

import pytest

from avff.doctor import machine
from avff.doctor.check import Status

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("needed", "status"), [(10, Status.OK), (60, Status.WARN), (101, Status.FAIL)], ids=["fits", "tight", "too much"]
)
def test_memory_is_compared_with_what_is_read_ahead(needed, status):
    assert machine.judge_memory(needed * 10**9, 100 * 10**9).status is status


def test_the_tightest_control_group_counts(tmp_path):
    """Version 2 as systemd nests it, and version 1; a folder without a limit says `max`."""
    for folder, limit, used in (("a", "1000", "400"), ("a/b", "max", "300"), ("memory/job", "500", "450")):
        version_1 = folder.startswith("memory")
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(f"{limit}\n")
        (tmp_path / folder / ("memory.usage_in_bytes" if version_1 else "memory.current")).write_text(f"{used}\n")
    assert machine.group_room_bytes("0::/a/b\n", tmp_path) == [600]
    assert machine.group_room_bytes("3:cpu:/x\n4:memory:/job\n0::/a/b\n", tmp_path) == [50, 600]
    assert machine.group_room_bytes("0::/\n", tmp_path) == []


def test_memory_of_this_machine_can_be_found_out():
    assert machine.available_bytes() > 10**8


def test_shared_memory_has_room_for_as_many_ranks_as_fit(tmp_path):
    assert machine.shared_memory(tmp_path, 1).status is Status.OK
    assert list(tmp_path.iterdir()) == []
    assert "no room" in machine.shared_memory(tmp_path, 10**9).value


@pytest.mark.parametrize(
    ("limit", "num_workers", "num_ranks", "status", "fix"),
    [
        (1024, 12, 8, Status.OK, ""),
        (1024, 12, 32, Status.WARN, "ulimit -n 1536"),
        (260, 12, 1, Status.FAIL, "ulimit -n 268"),
        (UNLIMITED, 10**6, 8, Status.OK, ""),
    ],
)
def test_open_files_are_connections_to_workers_and_first_steps_on_their_way(limit, num_workers, num_ranks, status, fix):
    answer = machine.judge_open_files(limit, num_workers, 4, num_ranks)
    assert answer.status is status and fix in answer.fix


@pytest.mark.parametrize(("limit", "status"), [(100, Status.FAIL), (100_000, Status.OK), (UNLIMITED, Status.OK)])
def test_processes_and_threads_are_counted(limit, status):
    assert machine.judge_processes(limit, num_workers=12, num_ranks_here=8).status is status


@pytest.mark.parametrize(
    ("limit", "has_infiniband", "status"),
    [(8_000_000, False, Status.OK), (8_000_000, True, Status.FAIL), (UNLIMITED, True, Status.OK)],
)
def test_infiniband_wants_to_lock_memory(limit, has_infiniband, status):
    assert machine.judge_locked_memory(limit, has_infiniband).status is status
