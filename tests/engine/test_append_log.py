"""Lines survive a full disk, a torn end and a resume."""

import errno
import json
import subprocess
from pathlib import Path

import pytest

from avff.engine.append_log import AppendLog, truncate
from avff.errors import CheckpointError
from avff.json_lines import read_lines


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
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate(path)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    truncate(path, resume_step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    log = AppendLog(path)
    log.append([{"step": 3}], durable=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    log.append([{"step": 4}])
    log.rewind(3)
    log.append([{"step": 5}])
    log.close()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 5]


def test_an_end_of_zeros_is_torn_and_a_bad_line_before_good_ones_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bytes(20) + b"\n" + bytes(7))
    assert [line["step"] for line in read_lines(path)] == [1]
    truncate(path)
    assert path.read_bytes() == b'{"step": 1}\n'
    path.write_bytes(b'{"step": 1}\n' + bytes(20) + b'\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"a.jsonl: line 2 is not JSON"):
        truncate(path)
