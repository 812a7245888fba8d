"""Curves show every value that was measured, in its place on each axis, however many there are."""

import math

import numpy as np
import pytest
from made_runs import BATCH, STARTED_UNIX, start_line, train_line, validation_line, write_lines, write_run

from avff.report.curves import Axes, Clock, Curves, columns, metric_curves, system_curves, thin
from avff.report.runs import read_runs


def read(folder, metrics, **lines):
    [run], _ = read_runs([write_run(folder, metrics, **lines)])
    return run


def test_missing_values_are_gaps_and_bad_ones_are_counted():
    lines = [{"a": 1.0}, {"a": None}, {"b": 2}, {"a": math.nan}, {"a": math.inf}, {"a": 5.0, "kind": "train"}]
    found = columns(lines)
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"].mean_N, [1, np.nan, np.nan, np.nan, np.nan, 5])
    np.testing.assert_array_equal(found["a"].is_bad_N, [False, False, False, True, True, False])
    assert not found["b"].is_bad_N.any()


def test_gpus_of_a_node_share_a_curve_with_their_spread():
    lines = [{"gpu0_power_watts": 700.0, "gpu1_power_watts": 100.0, "cpu_percent": 3.0}, {"gpu0_power_watts": 650.0}]
    found = columns(lines)
    assert list(found) == ["gpu_power_watts", "cpu_percent"]
    np.testing.assert_array_equal(found["gpu_power_watts"].mean_N, [400, 650])
    np.testing.assert_array_equal(found["gpu_power_watts"].low_N, [100, 650])
    np.testing.assert_array_equal(found["gpu_power_watts"].high_N, [700, 650])


@pytest.mark.parametrize("num_points", [11, 20, 1000])
def test_thinning_loses_no_extreme_no_bad_value_and_no_weight(num_points):
    rng = np.random.default_rng(num_points)
    values = rng.normal(size=num_points).tolist()
    values[3] = math.nan
    steps = np.arange(num_points, dtype=float)
    curves = thin(Curves(Axes(steps, steps, steps), columns([{"a": value} for value in values])), max_points=10)
    column = curves.columns["a"]
    assert len(column.mean_N) == len(curves.axes.step_N) == 10
    assert np.nanmin(column.low_N) == np.nanmin(values)
    assert np.nanmax(column.high_N) == np.nanmax(values)
    assert column.is_bad_N.sum() == 1
    counts = np.diff([*np.linspace(0, num_points, 10, endpoint=False).astype(int), num_points])
    counts[np.flatnonzero(column.is_bad_N)] -= 1
    assert np.nansum(column.mean_N * counts) == pytest.approx(np.nansum(values))
    assert (np.diff(curves.axes.step_N) > 0).all()


def test_few_points_stay_as_they_are(tmp_path):
    run = read(tmp_path / "a", [train_line(step) for step in (10, 20, 30)])
    curves = metric_curves(run, "train", Clock(run))
    np.testing.assert_array_equal(curves.axes.step_N, [10, 20, 30])
    np.testing.assert_array_equal(curves.axes.samples_seen_N, [10 * BATCH, 20 * BATCH, 30 * BATCH])
    np.testing.assert_array_equal(curves.columns["loss"].low_N, curves.columns["loss"].high_N)


def test_time_counts_from_the_first_start_and_validation_stands_where_its_step_was(tmp_path):
    metrics = [train_line(10), train_line(20), validation_line(15, **{"validation/auc": 0.5})]
    run = read(tmp_path / "a", metrics, starts=[start_line(0, 0)])
    clock = Clock(run)
    np.testing.assert_allclose(metric_curves(run, "train", clock).axes.elapsed_seconds_N, [40, 50])
    np.testing.assert_allclose(metric_curves(run, "validation", clock).axes.elapsed_seconds_N, [45])


def test_a_node_is_placed_by_the_time_of_its_lines(tmp_path):
    run_dir = write_run(tmp_path / "a", [train_line(10), train_line(20)], starts=[start_line(0, 0)])
    write_lines(run_dir / "system" / "n1.jsonl", [{"time_unix": STARTED_UNIX + t, "cpu_percent": t} for t in (20, 45)])
    [run], _ = read_runs([run_dir])
    axes = system_curves(run, "n1", Clock(run)).axes
    np.testing.assert_allclose(axes.step_N, [5, 15])
    np.testing.assert_allclose(axes.samples_seen_N, [5 * BATCH, 15 * BATCH])
    np.testing.assert_allclose(axes.elapsed_seconds_N, [20, 45])


def test_a_run_that_was_only_validated_has_steps_but_no_times(tmp_path):
    run = read(tmp_path / "a", [validation_line(15, **{"validation/auc": 0.5})])
    axes = metric_curves(run, "validation", Clock(run)).axes
    np.testing.assert_array_equal(axes.step_N, [15])
    np.testing.assert_array_equal(axes.elapsed_seconds_N, [np.nan])
