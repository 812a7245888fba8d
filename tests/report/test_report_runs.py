"""Run folders are read as training leaves them, also in the middle of a line; what is none is named."""

import socket
import subprocess
import sys

import pytest
from made_runs import start_line, train_line, write_lines, write_run

from avff.errors import CheckpointError
from avff.report import tables
from avff.report.runs import read_runs


def test_a_torn_last_line_is_left_out(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1), train_line(2)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 3, "sam')
    [read], _ = read_runs([run])
    assert [line["step"] for line in read.metrics] == [1, 2]


def test_a_damaged_line_within_is_named(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind"\n{"kind": "train", "step": 3, "samples_seen": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: line 2 is not JSON"):
        read_runs([run])


def test_lines_that_training_did_not_write_are_refused(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1)])
    write_lines(run / "metrics.jsonl", [{"epoch": 1, "loss": 2.0}])
    with pytest.raises(CheckpointError, match="line 1 has no kind, step and samples_seen"):
        read_runs([run])


def test_every_path_that_is_no_run_is_named(tmp_path):
    run = write_run(tmp_path / "runs" / "a", [train_line(1)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError) as error:
        read_runs([run, tmp_path / "empty", tmp_path / "nowhere"])
    assert "empty: holds no run" in str(error.value)
    assert "nowhere: no such folder" in str(error.value)


def test_a_run_without_metrics_is_left_out_and_alone_refused(tmp_path):
    begun, waiting = write_run(tmp_path / "a", [train_line(1)]), write_run(tmp_path / "b", [])
    runs, left_out = read_runs([begun, waiting])
    assert [run.label for run in runs] == ["a"]
    assert left_out == [f"{waiting}: no line in metrics.jsonl yet; it is left out"]
    with pytest.raises(CheckpointError, match=r"logging\.log_every_steps"):
        read_runs([waiting])


def test_a_folder_stands_for_its_runs_and_none_comes_twice(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name, [train_line(1)])
    runs, _ = read_runs([tmp_path / "runs" / "b", tmp_path / "runs"])
    assert [run.label for run in runs] == ["b", "a"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [write_run(tmp_path / folder / "base", [train_line(1)]) for folder in ("old", "new")]
    other = write_run(tmp_path / "new" / "large", [train_line(1)])
    runs, _ = read_runs([*paths, other])
    assert [run.label for run in runs] == ["old/base", "new/base", "large"]


def test_panels_are_in_the_order_of_their_steps(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1)])
    (run / "panels").mkdir()
    for step in (1000, 900, 20):
        (run / "panels" / f"step-{step}.png").write_bytes(b"")
    [read], _ = read_runs([run])
    assert [path.stem for path in read.panels] == ["step-20", "step-900", "step-1000"]


def test_who_trains_there_is_known(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1)], starts=[start_line(0, 0)])
    assert read_runs([run])[0][0].holder is None
    hold = "import sys, pathlib, avff.run_lock as l\nwith l.claim(pathlib.Path(sys.argv[1])): print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "1\n"
        runs, _ = read_runs([run])
        assert runs[0].holder["pid"] == process.pid
        assert f"training on {socket.gethostname()}" in tables.overview(runs, now_unix=0.0)
