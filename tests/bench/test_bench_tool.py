"""tools/bench.py from the command line: what it measures and writes, not how long it takes."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench

pytestmark = pytest.mark.slow


def test_seek_writes_a_row_per_step(tmp_path, capsys):
    arguments = ["seek", "--folder", str(tmp_path), "--samples", "40", "--rounds", "1", "--steps", "3", "100000"]
    assert bench.main(arguments) == 0
    report = json.loads((tmp_path / "seek.json").read_text())
    assert [row["step"] for row in report["rows"]] == [3, 100000] and report["rows"][0]["ratio"] == 1.0
    for row in report["rows"]:
        parts = row["open_seconds"] + row["seek_seconds"] + row["read_seconds"]
        assert row["total_seconds"] == pytest.approx(parts) and row["seek_seconds"] > 0
    assert {"processor", "cores", "python", "torch", "avff", "revision"} <= report["machine"].keys()
    text = capsys.readouterr().out
    assert "100000" in text and str(tmp_path / "seek.json") in text


def test_checkpoint_writes_a_row_with_and_without_overlap(tmp_path):
    arguments = ["checkpoint", "--folder", str(tmp_path), "--parameters", "2000000", "--ranks", "2", "--saves", "1"]
    assert bench.main(arguments) == 0
    rows = json.loads((tmp_path / "checkpoint.json").read_text())["rows"]
    assert [(row["ranks"], row["overlap"]) for row in rows] == [(2, 1), (2, 0)]
    for row in rows:
        assert row["megabytes"] == pytest.approx(2 * (16 + 8), rel=0.01)  # weights, two moments, average; two files
        assert row["blocked_ratio"] == pytest.approx(row["blocked_seconds"] / row["total_seconds"])
    assert rows[1]["slower_steps"] is None  # nothing else runs while it saves
    assert not (tmp_path / "saves").exists()


def test_a_config_that_is_not_there_is_an_error(tmp_path, capsys):
    assert bench.main(["seek", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "no such config file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: no benchmark is named; there are seek, checkpoint, step, loader"),
        (
            ["steps"],
            "error: no benchmark 'steps'; there are seek, checkpoint, step, loader, media, predict; did you mean step?",
        ),
        (["--nonsense"], "usage: bench.py BENCHMARK"),
        (["seek", "--nonsense"], "usage: bench.py seek [-h] [--config CONFIG]"),
        (["seek", "--nonsense"], "bench.py seek: error: unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_words_are_answered_by_the_one_who_knows_them(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(words)
    assert said in capsys.readouterr().err


def test_help_names_every_benchmark(capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in bench.BENCHMARKS) and "the training step, by stage" in said


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_help_of_a_benchmark_fits_a_terminal_in_whole_phrases(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")  # an option's help on one line
    with pytest.raises(SystemExit, match="0"):
        bench.main([name, "--help"])
    about, _, options = capsys.readouterr().out.partition("\noptions:\n")
    lines = about.split("\n", 1)[1].splitlines()  # after the usage
    assert max(map(len, lines)) <= 120 and f"{name}.json" in options
    helps = [line.split("  ")[-1] for line in options.splitlines()]
    assert len(helps) > 4 and not [words for words in helps if words.startswith(("default", "of ", "that "))]
