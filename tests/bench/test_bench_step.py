"""tools/bench.py step: what it measures and writes, not how long it takes."""

import json
import resource
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench

pytestmark = pytest.mark.slow

CLIP = ["clip.num_frames=8", "clip.image_size=32", "clip.hop_samples=100", "clip.num_mel_bins=32", "clip.num_slices=4"]
LITTLE = ["--size", "tiny", "--batch", "2", "--rounds", "2", "--set", *CLIP, "model.critic_width=32"]
LITTLE += ["engine.num_threads=1"]


def measure(folder: Path, *arguments: str) -> list[dict]:
    assert bench.main(["step", "--folder", str(folder), *LITTLE, *arguments]) == 0
    return json.loads((folder / "step.json").read_text())["rows"]


def test_against_eager(tmp_path):
    eager, fp32, bf16 = measure(tmp_path, "--against", "eager")
    assert [row["step"] for row in (eager, fp32, bf16)] == ["eager", "avff", "avff"]
    assert (fp32["precision"], bf16["precision"]) == ("fp32", "bf16")
    assert abs(fp32["loss_change"]) < 1e-4 and abs(fp32["norm_change"]) < 1e-4
    assert 0 < abs(bf16["loss_change"]) < 0.02 and abs(bf16["norm_change"]) < 0.02
    assert eager["speedup"] == 1.0 and fp32["speedup"] > 0
    parts = [fp32[name] for name in ("preprocess_seconds", "network_seconds", "optimizer_seconds")]
    assert min(parts) > 0
    assert fp32["clips_per_second"] == pytest.approx(2 / fp32["step_seconds"])


def test_products_of_settings_and_the_real_loader(tmp_path):
    choices = ["--stage", "1", "3", "--precision", "bf16", "--zero", "0", "3", "--loader", "generated", "--rounds", "1"]
    rows = measure(tmp_path, *choices, "--activation-checkpointing", "cheap")
    settings = [(row["stage"], row["zero"], row["checkpointing"]) for row in rows]
    assert settings == [(1, 0, "cheap"), (1, 3, "cheap"), (3, 0, "cheap"), (3, 3, "cheap")]
    for row in rows:
        slower = row["clips_per_second"] / row["loader_clips_per_second"]
        assert row["data_tax_percent"] == pytest.approx(100 * (slower - 1))
        assert row["result"] == "measured" and row["peak_gib"] is None and row["mfu"] is None
        assert abs(row["loss_change"]) < 1e-5 and abs(row["norm_change"]) < 1e-5


def test_eager_is_pretraining_only(tmp_path, capsys):
    assert bench.main(["step", "--folder", str(tmp_path), *LITTLE, "--stage", "3", "--against", "eager"]) == 2
    assert "write --stage 1" in capsys.readouterr().err


@pytest.fixture
def little_memory():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_what_does_not_fit_is_a_row_and_ends_nothing(little_memory, tmp_path):
    too_many = 1_000_000  # clips of 24 KiB
    rows = measure(tmp_path, "--batch", str(too_many), "2", "--precision", "bf16", "fp32", "--rounds", "1")
    found = [(row["batch"], row["precision"], row["result"]) for row in rows]
    assert found == [
        (too_many, "bf16", "out of memory"),
        (too_many, "fp32", "out of memory"),
        (2, "bf16", "measured"),
        (2, "fp32", "measured"),
    ]
    unknown = [row[name] for row in rows[:2] for name in ("clips_per_second", "loss", "loss_change", "speedup")]
    assert set(unknown) == {None}
    assert rows[2]["speedup"] == 1.0 and rows[3]["speedup"] > 0
