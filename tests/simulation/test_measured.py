"""Costs that are read from the reports of tools/bench.py."""

import json
from pathlib import Path

import pytest

from avff.config import load_config
from avff.simulation.cluster import load_cluster
from avff.simulation.costs import known_costs
from avff.simulation.parameters import trainable_sizes
from avff.simulation.timing import step_time

ROOT = Path(__file__).parents[2]
CLUSTER = load_cluster(ROOT / "configs/clusters/h200.yaml")
ROW = {"loader": "avff", "workers": 2, "cache": "page cache", "clips_per_second_per_core": 80.0}


def stage1(windows: int = 1):
    return load_config(ROOT / "configs/stage1_kinetics.yaml", [f"data.windows_per_sample={windows}"])


def written(path: Path, rows: list[dict], **about) -> Path:
    machine = {"gpu": None, "processor": "AMD EPYC", "cores": 2}
    path.write_text(json.dumps({**about, "machine": machine, "rows": rows}))
    return path


@pytest.mark.parametrize(("measured", "configured", "factor"), [(1, 1, 1.0), (4, 4, 1.0), (1, 4, 2.0), (4, 1, 0.5)])
def test_windows_of_a_sample_are_counted_once(tmp_path, measured, configured, factor):
    config, path = stage1(configured), written(tmp_path / "loader.json", [ROW], windows=measured)
    costs = known_costs([], [path], config, CLUSTER).costs
    time = step_time(config, trainable_sizes(config), CLUSTER, costs, 8)
    # 64 clips of a GPU per update at 80 per core and second; four windows of a sample cost as much as two samples.
    assert time.loader_cores == pytest.approx(64 / 80 / factor / (time.total - time.wait))


def test_rows_with_workers_and_files_in_memory_are_preferred_and_named(tmp_path):
    rows = [
        ROW | {"clips_per_second_per_core": value, "workers": workers, "cache": cache}
        for value, workers, cache in (
            (110.0, 0, "page cache"),
            (70.0, 2, "page cache"),
            (60.0, 4, "page cache"),
            (20.0, 2, "cold"),
        )
    ]
    rows.append(ROW | {"loader": "webdataset", "clips_per_second_per_core": 200.0})
    path = written(tmp_path / "loader.json", rows, windows=1)
    known = known_costs([], [path], stage1(), CLUSTER)
    assert known.costs.clips_per_second_per_core == 65
    assert known.sources["clips_per_second_per_core"] == (
        f"measured clips_per_second_per_core=65 ({path}: median of 2 rows, workers 2, 4, page cache)"
    )
    known = known_costs([], [written(path, [rows[0]])], stage1(), CLUSTER)
    assert known.costs.clips_per_second_per_core == 110
    assert "median of 1 row, page cache)" in known.sources["clips_per_second_per_core"]


def test_another_machine_is_warned_about_with_its_size(tmp_path):
    save = {"ranks": 2, "overlap": 1, "megabytes": 24.0, "blocked_seconds": 0.04, "total_seconds": 1.0}
    path = written(tmp_path / "checkpoint.json", [save])
    (line,) = known_costs([], [path], stage1(), CLUSTER).machines
    assert line == (f"warning: {path}: measured on AMD EPYC, no GPU, 2 cores, saves of 24 MB, for cluster h200")
    laptop = load_cluster(ROOT / "configs/clusters/laptop_cpu.yaml")
    (line,) = known_costs([], [path], stage1(), laptop).machines
    assert line.startswith(f"{path}: measured on AMD EPYC")
