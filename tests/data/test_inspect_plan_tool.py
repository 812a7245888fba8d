"""tools/inspect_plan.py from the command line."""

import sys
from pathlib import Path

import pytest
from index_files import write_indexed_directory

from avff.config import save_config

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import inspect_plan


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """24 shards of 50 clips; every tenth clip is a forgery, which pretraining leaves out."""
    return write_indexed_directory(
        tmp_path_factory.mktemp("plan") / "shards", [50] * 24, lambda number: {"is_fake": int(number % 10 == 0)}
    )


@pytest.fixture
def run(capsys, tiny_config, tmp_path, shards):
    """Calls the tool on a config over `shards`: `code, stdout, stderr = run("--ranks", 2, data={...})`."""

    def call(*arguments, data=None):
        path = tmp_path / "config.yaml"
        engine = {"global_batch_size": 20, "micro_batch_size": 2}
        data = {"train": [{"path": str(shards.path)}], **(data or {})}
        save_config(tiny_config(data=data, engine=engine, pretrain={"contrastive_group_size": 20}), path)
        code = inspect_plan.main([str(path), *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def test_a_good_plan_is_described_and_passes(run):
    code, text, problem = run("--ranks", 2, "--workers", 4)
    assert code == 0 and problem == ""
    assert "1080, read as 1080 clips per epoch; left out: 120 by labels" in text
    assert "24 with 45 / 45 / 45 of the samples" in text
    assert "20 clips each, 54.0 per epoch" in text
    assert "ranks for both                             1, 2, 5, 10" in text
    assert "warning" not in text and "POOR" not in text and "problem" not in text


def test_a_sorted_plan_fails_and_says_what_to_change(run):
    code, text, _ = run("data.shuffle_window_shards=1", "data.num_runs=1", "--explain")
    assert code == 1
    assert text.count("POOR") == 2 and "share of clips after which one of the same shard is read" in text
    assert "problem: poorly shuffled: neighbours of one shard is 0.9" in text
    assert "raise data.shuffle_window_shards or data.num_runs" in text


def test_ranks_that_do_not_divide_fail_with_numbers_that_work(run):
    code, text, _ = run("--ranks", 8)
    assert code == 1 and "problem: engine.global_batch_size 20 does not divide over 8 ranks; use a rank count" in text


def test_many_readers_are_warned_about(run):
    code, text, _ = run("--ranks", 5, "--workers", 5)
    assert code == 0 and "warning: 24 shards for 25 readers" in text


def test_what_cannot_be_planned_is_an_error(run):
    code, _, problem = run(data={"train_split": "val"})
    assert code == 2 and "none of 1200 samples is left to train on" in problem
