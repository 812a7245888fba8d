"""Each number gets one chart with all runs in it, under the heading where one looks for it."""

import math

from made_runs import train_line, validation_line, write_lines, write_run

from avff.report.charts import make_groups
from avff.report.runs import read_runs


def groups_of(*paths):
    runs, _ = read_runs(paths)
    return {group.title: group for group in make_groups(runs)}


def names(group):
    return [chart.name for chart in group.charts]


def test_numbers_are_grouped_and_runs_share_charts(tmp_path):
    values = {"contrastive": 1.0, "gradient_norm/model": 2.0, "learning_rate/model/decay": 0.1, "clips_per_second": 9.0}
    metrics = [train_line(1, **values), validation_line(1, **{"validation/auc": 0.5, "seconds": 3.0})]
    a = write_run(tmp_path / "a", metrics)
    b = write_run(tmp_path / "b", [train_line(1, other_loss=2.0)])
    write_lines(a / "system" / "n1.jsonl", [{"time_unix": 1.79e9, "cpu_percent": 1.0}])
    found = groups_of(a, b)
    assert {title: names(group) for title, group in found.items()} == {
        "Losses and their parts": ["loss", "contrastive", "other_loss"],
        "Validation": ["validation/auc"],
        "Gradient norms": ["gradient_norm/model"],
        "Learning rates": ["learning_rate/model/decay"],
        "Speed and memory": ["clips_per_second", "validation seconds"],
        "System": ["system/cpu_percent"],
    }
    loss, contrastive, _ = found["Losses and their parts"].charts
    assert [line.run for line in loss.lines] == [0, 1]
    assert [line.run for line in contrastive.lines] == [0]
    assert [(line.run, line.host) for line in found["System"].charts[0].lines] == [(0, "n1")]


def test_charts_that_would_look_alike_are_one(tmp_path):
    def line(step):
        rates = {"learning_rate/decay": 0.1 / step, "learning_rate/no_decay": 0.1 / step, "learning_rate/new": 1 / step}
        return train_line(step, **rates)

    group = groups_of(write_run(tmp_path / "a", [line(1), line(2)]))["Learning rates"]
    assert names(group) == ["learning_rate/decay", "learning_rate/new"]
    assert group.charts[0].about == "equal to no_decay"


def test_counters_that_stayed_at_zero_are_said_and_not_drawn(tmp_path):
    metrics = [train_line(1, spikes=0, rewinds=0), train_line(2, spikes=0, rewinds=1)]
    group = groups_of(write_run(tmp_path / "a", metrics))["Data and faults"]
    assert names(group) == ["rewinds"]
    assert group.note == "Stayed at 0: spikes."


def test_what_was_never_measured_has_no_chart_and_what_was_never_finite_has_one(tmp_path):
    metrics = [train_line(1, mfu=None, contrastive=math.nan)]
    found = groups_of(write_run(tmp_path / "a", metrics))
    assert "Speed and memory" not in found
    assert names(found["Losses and their parts"]) == ["loss", "contrastive"]
