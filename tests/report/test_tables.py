"""Tables say where runs stand, where their configs differ, what happened; and nothing where nothing did."""

import re

from made_runs import STARTED_UNIX, start_line, train_line, validation_line, write_run

from avff.report import tables
from avff.report.marks import marks_of
from avff.report.runs import read_runs

KILLED = {"reason": "no exit.json: killed, or its machine failed", "code": None, "step": None}
STOPPED = {"reason": "stopped by SIGUSR2", "code": 75, "step": 40}


def cells(html: str) -> list[list[str]]:
    """The text of a table's lines, without the header."""
    lines = re.findall(r"<tr>(.*?)</tr>", html, re.S)[1:]
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", line, re.S)] for line in lines]


def test_overview_says_where_each_run_stands(tmp_path):
    metrics = [train_line(10, loss=3.0, clips_per_second=12.0)]
    metrics += [
        validation_line(step, **{"validation/reconstruction": v}) for step, v in ((10, 2.0), (20, 1.5), (30, 1.75))
    ]
    done = write_run(tmp_path / "done", metrics, exit={"reason": "finished", "code": 0, "step": 30})
    lost = write_run(
        tmp_path / "lost", [train_line(10, loss=None)], starts=[start_line(0, 0), start_line(1, 0, KILLED)]
    )
    full = write_run(tmp_path / "full", metrics, exit={"reason": "disk full", "code": 3, "step": 7})
    lines = cells(tables.overview(read_runs([done, lost, full])[0], now_unix=STARTED_UNIX + 40 + 120))
    assert lines[0][:7] == ["done", "finished", "30 of 1,000", "1,920", "3", "reconstruction 1.5 at step 20", "12"]
    assert lines[1][1] == "training elsewhere, or killed; newest line 2 min old"
    assert lines[1][4:] == ["–", "–", "–", "40 s", "2"]
    assert lines[2][1] == "disk full (code 3, step 7)"


def test_the_best_of_a_classifier_is_the_highest(tmp_path):
    metrics = [validation_line(step, **{"validation/auc": auc}) for step, auc in ((1, 0.5), (2, None), (3, 0.75))]
    run = write_run(tmp_path / "a", metrics, config={"stage": "finetune"})
    assert cells(tables.overview(read_runs([run])[0], now_unix=0.0))[0][5] == "auc 0.75 at step 3"


def test_only_config_keys_that_differ_are_shown(tmp_path):
    configs = [
        {"optim": {"num_steps": 9, "learning_rate": 0.1}, "data": {"train": [{"path": "<a>"}]}},
        {"optim": {"num_steps": 9, "learning_rate": 0.2}, "data": {"train": [{"path": "<a>"}]}, "new": True},
    ]
    paths = [write_run(tmp_path / f"r{i}", [train_line(1)], config=config) for i, config in enumerate(configs)]
    runs, _ = read_runs(paths)
    assert cells(tables.differences(runs)) == [["optim.learning_rate", "0.1", "0.2"], ["new", "–", "true"]]
    assert tables.differences(runs[:1]) == ""


def test_starts_are_listed_with_their_ends_for_runs_that_had_several(tmp_path):
    starts = [start_line(0, 0), start_line(1, 40, STOPPED), start_line(2, 40, KILLED, host="n2")]
    again = write_run(
        tmp_path / "again", [train_line(1)], starts=starts, exit={"reason": "finished", "code": 0, "step": 9}
    )
    once = write_run(tmp_path / "once", [train_line(1)], starts=starts[:1])
    runs, _ = read_runs([once, again])
    lines = cells(tables.starts(runs))
    assert [line[0] for line in lines] == ["again"] * 3
    assert [line[3] for line in lines] == ["n1", "n1", "n2"]
    assert [line[5] for line in lines] == [
        "stopped by SIGUSR2 (code 75, step 40)",
        "no exit.json: killed, or its machine failed",
        "finished (code 0, step 9)",
    ]
    assert tables.starts(runs[:1]) == ""


def test_the_ledger_is_summed_up_by_cause(tmp_path):
    def replaced(step, reason):
        return {"kind": "substituted", "step": step, "shard": "s/0.tar", "reason": reason, "key": f"k{step}"}

    terms = {"loss": "nan", "contrastive": "inf", "audio": "1.5"}
    skipped = {"kind": "skipped", "step": 7, "batches": [{"rank": 1, "keys": ["k"], "terms": terms}]}
    ledger = [replaced(3, "torn <mp4>"), replaced(1, "too short"), replaced(9, "torn <mp4>"), skipped]
    runs, _ = read_runs([write_run(tmp_path / "a", [train_line(1)], ledger=ledger)])
    assert cells(tables.ledger(runs)) == [
        ["a", "sample replaced", "s/0.tar", "torn &lt;mp4&gt;", "2", "3 – 9"],
        ["a", "sample replaced", "s/0.tar", "too short", "1", "1"],
        ["a", "update skipped", "", "not finite: loss, contrastive", "1", "7"],
    ]


def test_what_happened_is_marked_in_order(tmp_path):
    run_dir = write_run(
        tmp_path / "a",
        [train_line(1)],
        starts=[start_line(0, 0), start_line(1, 40, STOPPED)],
        ledger=[{"kind": "spike", "step": 55, "loss": 900.0}, {"kind": "substituted", "step": 2}],
        decisions=[
            {"kind": "rewound", "from_step": 30, "spike_step": 35, "loss": 77.125},
            {"kind": "quarantined", "key": "k"},
            {"kind": "replanned", "from_step": 50, "data_hash": "x"},
        ],
    )
    [run], _ = read_runs([run_dir])
    assert [(mark.kind, mark.step, mark.text) for mark in marks_of(run)] == [
        ("rewind", 30, "went back to step 30: at step 35 the loss was 77.12"),
        ("start", 40, "start 2 on n1, at step 40; before it: stopped by SIGUSR2 (code 75, step 40)"),
        ("replan", 50, "other shards from step 50 on"),
        ("spike", 55, "step 55: loss 900 is a spike"),
    ]
