"""Lines survive a full disk, a torn end and a resume."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from avff.engine.append_log import AppendLog, read_lines, truncate


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_full_disk_delays_lines_and_loses_none(small_disk):
    log = AppendLog(small_disk / "metrics.jsonl")
    log.append([{"step": 1}])
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    # Longer than what is left of the page that the file has already.
    log.append([{"step": 2, "text": "x" * 5000}])
    log.append([{"step": 3}])
    with pytest.raises(OSError) as error:
        log.make_durable()
    assert error.value.errno == errno.ENOSPC
    assert log.path.read_text() == '{"step": 1}\n', "half a line is left"
    filler.unlink()
    log.append([{"step": 4}])
    log.close()
    assert [line["step"] for line in read_lines(log.path)] == [1, 2, 3, 4]


def test_a_close_that_cannot_write_says_so(small_disk):
    log = AppendLog(small_disk / "metrics.jsonl")
    log.append([{"text": "x" * 100_000}])
    with pytest.raises(OSError, match="No space left"):
        log.close()


def test_truncating_removes_a_torn_line_and_later_steps(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 3}\n{"step": 2}\n{"st')
    truncate(path)
    assert [line["step"] for line in read_lines(path)] == [1, 3, 2]
    truncate(path, resume_step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    log = AppendLog(path)
    log.append([{"step": 3}], durable=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    log.close()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
