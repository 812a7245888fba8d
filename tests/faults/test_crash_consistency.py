"""A machine dies after any file operation of a save: a complete checkpoint is found, whatever the disk had not yet kept.

The file operations are those of real saves by two ranks, recorded by strace; lost_writes.py has the model of the disk.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lost_writes import STRACE, Disk, Operation, policies, read_trace

pytestmark = [pytest.mark.slow, pytest.mark.faults]
WORKER = Path(__file__).with_name("crash_worker.py")


def run(*command: object) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed, so no file operation can be recorded (Debian: apt-get install strace)")
    folder = tmp_path_factory.mktemp("crash")
    run_dir, marks, trace, output = (folder / name for name in ("run", "marks", "trace", "results.json"))
    run_dir.mkdir()
    marks.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run(*STRACE, "-o", trace, *torchrun, WORKER, "record", run_dir, marks)
    run(sys.executable, WORKER, "check", trace, run_dir, marks, output)
    return json.loads(output.read_text())


def test_the_model_of_the_disk_ends_with_the_files_that_are_there(results):
    assert results["model_is_exact"] and results["num_saved"] == 2


def test_a_complete_checkpoint_is_found_after_every_operation(results):
    assert results["wrong"] == []
    assert results["num_operations"] > 150 and results["num_trees"] > 100


def test_without_fsync_checkpoints_would_be_lost(results):
    assert any("found None" in line for line in results["wrong_without_fsync"])


# ------------------------------------------------------------------------------------------- the model itself


def trees(disk: Disk) -> dict[str, dict[str, bytes | None]]:
    return {name: disk.tree(keeps) for name, keeps in policies(0, seed=0).items()}


def test_what_is_not_synced_may_be_lost_in_part():
    disk = Disk()
    for operation in (Operation("create", "a"), Operation("write", "a", b"one"), Operation("write", "a", b"two")):
        disk.apply(operation)
    assert trees(disk) == {
        "all kept": {"a": b"onetwo"},
        "all lost": {},
        "names without contents": {"a": b""},
        "contents without names": {},
    }
    for operation in (Operation("sync_begins", "a", 1), Operation("write", "a", b"!"), Operation("sync_ends", "a", 1)):
        disk.apply(operation)
    assert trees(disk)["names without contents"] == {"a": b"onetwo"}, "what came after the fsync began may be lost"
    assert trees(disk)["all lost"] == {}, "the name is the folder's"
    for kind in ("sync_begins", "sync_ends"):
        disk.apply(Operation(kind, ".", 2))
    assert trees(disk)["all lost"] == {"a": b"onetwo"}


def test_a_rename_takes_a_folder_along_and_may_be_lost():
    disk = Disk()
    for kind, path, argument in (
        ("mkdir", "d.tmp", 0),
        ("create", "d.tmp/f", 0),
        ("sync_begins", "d.tmp", 1),
        ("sync_ends", "d.tmp", 1),
        ("sync_begins", ".", 2),
        ("sync_ends", ".", 2),
        ("rename", "d.tmp", "d"),
        ("remove", "d/f", 0),
    ):
        disk.apply(Operation(kind, path, argument))
    assert trees(disk)["all kept"] == {"d": None}
    assert trees(disk)["all lost"] == {"d.tmp": None, "d.tmp/f": b""}


def test_calls_that_were_interrupted_are_put_together(tmp_path):
    root, marks, trace = tmp_path / "run", tmp_path / "marks", tmp_path / "trace"
    trace.write_text(
        f'1 openat(AT_FDCWD</x>, "{root}/a", O_WRONLY|O_CREAT|O_TRUNC, 0666 <unfinished ...>\n'
        f'2 mkdir("{root}/b", 0777) = 0\n'
        f"1 <... openat resumed>) = 3<{root}/a>\n"
        f'1 write(3<{root}/a>, "\\x61\\x62", 2) = 2\n'
        f"1 fsync(3<{root}/a> <unfinished ...>\n"
        f'2 mkdir("{root}/b", 0777) = -1 EEXIST (File exists)\n'
        f'2 mkdir("{marks}/1", 0777) = 0\n'
        "1 <... fsync resumed>) = 0\n"
        f'2 unlinkat(5<{root}>, "a", 0 <unfinished ...>\n'
        "2 +++ killed by SIGKILL +++\n"
    )
    assert [(operation.kind, operation.path) for operation in read_trace(trace, root, marks)] == [
        ("create", "a"),
        ("mkdir", "b"),
        ("write", "a"),
        ("sync_begins", "a"),
        ("mark", ""),
        ("sync_ends", "a"),
    ]


def test_a_call_that_is_not_modelled_is_refused(tmp_path):
    root, trace = tmp_path / "run", tmp_path / "trace"
    trace.write_text(f'1 pwrite64(3<{root}/a>, "\\x61", 1, 7) = 1\n')
    with pytest.raises(ValueError, match=r"pwrite64.*not modelled"):
        list(read_trace(trace, root, tmp_path / "marks"))
