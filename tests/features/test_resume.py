"""An extraction that is killed goes on and ends with the same bytes; a folder is never mixed from two of them."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from avff.building import locks
from avff.errors import ConfigError, EvaluationError
from avff.features import extract as extract_module
from avff.features import layout
from avff.features.extract import describe_extraction

IN_PROCESS = {"device": "cpu", "num_workers": 0, "progress": False}
WORKERS = Path(__file__).parent / "workers"
TIMEOUT_SECONDS = 300
"""Far more than any of it takes on a busy machine: a process that hangs ends the test, not the whole suite."""


@pytest.fixture
def run_killed(forks, tmp_path):
    """Extracts in a process of its own that kills itself inside `module.name`."""

    def run(module, name, calls, *, weights, shards, output, **options):
        given = {"checkpoint": str(weights), "shards": [str(shards)], "output": str(output), **IN_PROCESS, **options}
        words, printed = [module.__name__, name, calls, json.dumps(given)], tmp_path / "killed.txt"
        worker = WORKERS / "killed_extraction.py"
        codes = forks.run(worker, *words, output=printed, timeout_seconds=TIMEOUT_SECONDS)
        assert codes == [-signal.SIGKILL], printed.read_text()

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "module", "name", "calls", "parts_there"),
    [
        ("npy", safetensors.numpy, "save_file", 3, 2),  # a third part written, not yet renamed
        ("npy", np.lib.format, "write_array_header_1_0", 2, 5),  # the second array begun
        ("shards", layout, "_add_member", 21, 5),  # in the middle of the second tar
        ("npy", extract_module, "read_sidecar", 1, 5),  # all written but the report
        ("shards", shutil, "rmtree", 1, 0),  # finished but for the tidying up
    ],
)
def test_killed_and_continued_gives_the_same_bytes(
    run_killed, shard_directory, write_weights, run_extraction, tmp_path, form, module, name, calls, parts_there
):
    weights = write_weights()
    options = {"weights": weights, "form": form, "part_samples": 5, "batch_size": 4, "level": "slice"}
    whole = run_extraction(shard_directory.path, name="whole", **options)
    killed = tmp_path / "killed"
    run_killed(module, name, calls, shards=shard_directory.path, output=killed, **options)
    assert len(list((killed / ".parts").glob("part-*") if parts_there else [])) == parts_there
    assert (killed / "extract.json").exists() == (parts_there == 0)
    continued = run_extraction(shard_directory.path, name="killed", **options)
    assert contents(killed) == contents(whole.output)
    assert continued.was_there == (parts_there == 0)


@pytest.mark.slow
def test_finished_parts_are_not_computed_again(
    run_killed, shard_directory, write_weights, run_extraction, tmp_path, monkeypatch
):
    options = {"weights": write_weights(), "part_samples": 5}
    run_killed(extract_module, "write_part", 3, shards=shard_directory.path, output=tmp_path / "out", **options)
    read = []
    load = extract_module.load_samples
    monkeypatch.setattr(
        extract_module, "load_samples", lambda samples, *a, **k: read.extend(samples) or load(samples, *a, **k)
    )
    run_extraction(shard_directory.path, **options)
    assert [sample.row.key for sample in read] == [row.key for row in shard_directory.rows[15:]]


def test_a_second_call_does_nothing_and_says_so(shard_directory, write_weights, run_extraction):
    weights = write_weights()
    first = run_extraction(shard_directory.path, weights=weights)
    times = {path: path.stat().st_mtime_ns for path in first.output.iterdir()}
    second = run_extraction(shard_directory.path, weights=weights, batch_size=3)
    assert second.was_there and not first.was_there and second.report == first.report
    assert {path: path.stat().st_mtime_ns for path in first.output.iterdir()} == times
    assert "nothing was done" in describe_extraction(second)


def test_the_same_shards_elsewhere_are_the_same_extraction(shard_directory, write_weights, run_extraction, tmp_path):
    weights = write_weights()
    run_extraction(shard_directory.path, weights=weights)
    moved = shutil.copytree(shard_directory.path, tmp_path / "moved")
    assert run_extraction(moved, weights=weights).was_there


@pytest.mark.parametrize("finished", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_settings_in_the_same_folder_are_refused_with_both_values(
    run_killed, shard_directory, write_weights, run_extraction, tmp_path, finished
):
    weights = write_weights()
    make = lambda **options: run_extraction(shard_directory.path, **{"weights": weights, **options})  # noqa: E731
    if finished:
        make()
    else:
        run_killed(extract_module, "begin", 1, weights=weights, shards=shard_directory.path, output=tmp_path / "out")
    with pytest.raises(EvaluationError, match=r"level 'clip' there, 'slice' now; split 'all' there, 'test' now"):
        make(level="slice", split="test")
    with pytest.raises(EvaluationError, match=r"features \['video', 'audio'\] there, \['video'\] now"):
        make(features=("video",))
    before = json.loads(weights.with_suffix(".json").read_text())["config"]["seed"]
    other = write_weights(name="other", seed=before + 1)
    with pytest.raises(
        EvaluationError, match=r"checkpoint_sha256 '[0-9a-f]{64}' there, '[0-9a-f]{64}' now; give another"
    ):
        make(weights=other)


def test_another_version_does_not_go_on(shard_directory, write_weights, run_extraction, monkeypatch):
    weights = write_weights()
    run_extraction(shard_directory.path, weights=weights)
    monkeypatch.setattr(extract_module, "__version__", "99.0")
    with pytest.raises(EvaluationError, match=r"made otherwise: avff '.*' there, '99\.0' now; give another --output"):
        run_extraction(shard_directory.path, weights=weights)


def test_a_folder_of_other_files_is_left_alone(shard_directory, run_extraction, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "video.npy").write_bytes(b"mine")
    with pytest.raises(EvaluationError, match=r"out: holds video\.npy and no extraction; give --output"):
        run_extraction(shard_directory.path)
    assert (tmp_path / "out" / "video.npy").read_bytes() == b"mine"


def test_a_damaged_extraction_is_named(shard_directory, write_weights, run_extraction, tmp_path):
    weights = write_weights()
    out = run_extraction(shard_directory.path, weights=weights).output
    (out / "video.npy").write_bytes(b"torn")
    with pytest.raises(EvaluationError, match=r"video\.npy: has 4 bytes instead of \d+; delete"):
        run_extraction(shard_directory.path, weights=weights)
    (out / "video.npy").unlink()
    with pytest.raises(EvaluationError, match=r"video\.npy: is missing"):
        run_extraction(shard_directory.path, weights=weights)


def test_two_at_once_do_not_meet(shard_directory, run_extraction, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.0)
    command = [sys.executable, WORKERS / "lock_holder.py", tmp_path / "out" / ".parts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        too_late = threading.Timer(TIMEOUT_SECONDS, holder.kill)
        too_late.start()
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=rf"/out: process {holder.pid} on .*wait for it or stop it"):
                run_extraction(shard_directory.path)
        finally:
            too_late.cancel()
            holder.kill()
    assert run_extraction(shard_directory.path).report["num_rows"] == 24
