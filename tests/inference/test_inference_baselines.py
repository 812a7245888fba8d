"""Baselines on stored clips: what they may look at, and that they expose a shortcut."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from avff.data.shards import read_sample
from avff.evaluation.rows import read_rows
from avff.inference.baselines import evaluate_baselines
from avff.inference.features import RandomFeatures, metadata_features


@pytest.fixture
def split_directory(make_sample, write_directory, tmp_path):
    """24 training and 12 test clips; every fake one starts with silence when `silent` is set."""

    def write(silent: bool):
        samples = []
        for i in range(36):
            sound = np.random.default_rng(i).normal(0, 2000, 3 * 16000 + 3200).astype(np.int16)
            sound[: 4000 if silent and i % 2 else 0] = 0
            split = "train" if i < 24 else "test"
            samples.append(make_sample(f"c{i:02}", split=split, is_fake=i % 2, sound_N=sound))
        samples.append(make_sample("blind", split="test", status=["NO_FACE"]))
        write_directory(tmp_path / "shards", samples)
        return tmp_path / "shards"

    return write


def test_metadata_features_hold_no_label(make_sample):
    real = make_sample("a", is_fake=0)
    values = real.metadata
    fake = real._replace(
        metadata=dataclasses.replace(
            values, is_fake=1, video_is_fake=1, audio_is_fake=1, category="FVFA", methods=["swap"], split="test"
        )
    )
    assert metadata_features(fake) == metadata_features(real)
    assert all(np.isfinite(value) for value in metadata_features(real).values())


@pytest.mark.slow
def test_leading_silence_betrays_the_fakes(split_directory, tiny_config, tmp_path):
    shards = split_directory(silent=True)
    found = evaluate_baselines(
        tiny_config("finetune"), [shards], tmp_path / "out", num_seeds=2, device="cpu", num_workers=0, progress=False
    )
    assert found.metadata_only["value"] == 1.0
    report = json.loads((tmp_path / "out/baselines.json").read_text())
    assert report["random_features"]["per_seed"] == found.random_features["per_seed"]
    assert len(found.random_features["per_seed"]) == 2
    for path in found.row_paths:
        rows = read_rows(path)
        assert len(rows) == 13
        assert [row.key for row in rows if not row.decided] == ["blind"]
    assert report["metadata_only"]["undecided"]["count"] == 1


def test_random_features_depend_on_the_seed_and_not_on_the_batch(shard_directory, tiny_config):
    networks = RandomFeatures(tiny_config("finetune"), [0, 1], torch.device("cpu"))
    clips = [networks.view.evaluation_clips(read_sample(shard_directory, row))[0] for row in shard_directory.rows[:3]]
    together = networks(clips)
    assert together.shape == (2, 3, 2 * 96)
    alone = np.concatenate([networks([clip]) for clip in clips], axis=1)
    assert np.allclose(together, alone, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-2)
