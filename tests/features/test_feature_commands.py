"""`avff extract` and `avff probe` as they are typed."""

import json

import numpy as np
import pytest
from made_checkpoints import add_weights

from avff.checkpoints import read_checkpoint
from avff.cli import main
from avff.exporting.folder import write_folder
from avff.models.build import build_model
from avff.run_folder import resolve_checkpoint


@pytest.fixture
def run(tiny_config):
    """A pretraining run with two checkpoints of different weights."""
    config = tiny_config("pretrain")
    for step in (3, 7):
        add_weights(config, step, build_model(tiny_config("pretrain", seed=step)).state_dict(), trained_on=[])
    return config.run_dir


@pytest.fixture
def bright_fakes(make_sample, write_directory, tmp_path):
    """Every fake clip is a little brighter than the real ones; sound says nothing."""
    rng = np.random.default_rng(0)
    samples = []
    for split, count in (("train", 24), ("val", 8), ("test", 16)):
        for i in range(count):
            level = rng.integers(60, 100) + 60 * (i % 2)
            picture = np.clip(level + rng.normal(0, 20, (8, 64, 64, 3)), 0, 255).astype(np.uint8)
            samples.append(make_sample(f"{split}{i:02}", split=split, is_fake=i % 2, num_frames=8, video_THWC=picture))
    return write_directory(tmp_path / "shards", samples, num_shards=2).path


def test_from_shards_to_a_verdict_on_the_features(run, bright_fakes, tmp_path, capsys):
    output = tmp_path / "features"
    command = ["extract", "--checkpoint", str(run), "--shards", str(bright_fakes), "--output", str(output)]
    command += ["--device", "cpu", "--num-workers", "0"]
    assert main(command) == 0
    assert "48 rows of video, audio per clip, from 48 of 48 samples" in capsys.readouterr().out
    assert main(command) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert main(["probe", "--train", str(output), "--k", "5"]) == 0
    printed = capsys.readouterr().out
    assert "test       16 rows of 16 samples (8 real, 8 fake, 16 groups)" in printed and "probe.png" in printed
    results = json.loads((output / "probe_is_fake/probe.json").read_text())["results"]
    assert results["video"]["knn"]["auc"]["value"] > 0.95 and results["video"]["linear"]["auc"]["value"] > 0.95
    assert results["audio"]["linear"]["auc"]["low"] < 0.5 < results["audio"]["linear"]["auc"]["high"]
    assert main([*command, "--level", "slice"]) == 2
    assert "level 'clip' there, 'slice' now" in capsys.readouterr().err


def test_the_checkpoint_of_a_run_is_the_one_named(run, bright_fakes, tmp_path):
    found = {}
    for which in ("step-3", "last", "last:raw"):
        output = tmp_path / which.replace(":", "_")
        command = ["extract", "--checkpoint", f"{run}:{which}", "--shards", str(bright_fakes), "--output", str(output)]
        assert main([*command, "--split", "val", "--device", "cpu", "--num-workers", "0"]) == 0
        found[which] = np.load(output / "video.npy")
        assert json.loads((output / "extract.json").read_text())["step"] == (3 if which == "step-3" else 7)
    write_folder(tmp_path / "network", read_checkpoint(resolve_checkpoint(f"{run}:step-3")))
    output = tmp_path / "of_folder"
    command = ["extract", "--checkpoint", str(tmp_path / "network"), "--shards", str(bright_fakes)]
    command += ["--output", str(output), "--split", "val", "--device", "cpu", "--num-workers", "0"]
    assert main(command) == 0
    assert np.array_equal(np.load(output / "video.npy"), found["step-3"])
    assert found["last"].shape == (8, 96) and not np.allclose(found["step-3"], found["last"], atol=1e-2)
    assert np.array_equal(found["last"], found["last:raw"])
