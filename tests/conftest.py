"""Fixtures that every room's tests share: real little samples, shard directories, a tiny config.

`shard_directory` is what most tests want: three tars of 24 clips on disk, opened with `open_directory`.
`make_sample` builds one sample with chosen labels, length, faces and content; `tiny_config` fits both.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forks
from made_samples import STORED_SIDE, build_directory, build_sample

from avff.config import Config
from avff.data.decoders import require_decoder
from avff.data.shards import Sample, ShardDirectory, open_directory
from avff.errors import ConfigError
from avff.strict_yaml import from_dict

MAKE_SHARDS = Path(__file__).parents[1] / "tools" / "make_shards.py"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked `gpu` where there is none, or fails them with AVFF_REQUIRE_GPU=1."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("AVFF_REQUIRE_GPU") == "1":
            pytest.fail("AVFF_REQUIRE_GPU=1, but torch finds no CUDA device")
        pytest.skip("torch finds no CUDA device")


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    """Leaves Python's, NumPy's and torch's global random state as the test found it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """Builds one real sample (h264 and FLAC) in memory: `make_sample(key, ...)`.

    By default one face track of 16 frames of 64 x 64 pixels at 5 per second (3.2 s) with sound, real, split `train`,
    its own person. Keywords:

        split, is_fake, video_is_fake, audio_is_fake, group_ids, dataset, methods, fake_segments_seconds, extra, ...
        num_frames, frames_per_second      of the stored video
        tracks                             [(first_frame, num_frames), ...] of the faces; [] stores the whole frame
        speakers, track_labels             is_speaker and is_fake per track
        video_THWC, sound_N                own content: uint8 frames, int16 sound at 16 kHz
        status                             ["NO_FACE"], ["NO_AUDIO"] leave the members out
    """
    return build_sample


@pytest.fixture(scope="session")
def write_directory() -> Callable[..., ShardDirectory]:
    """Writes samples into a shard directory and opens it: `write_directory(path, samples, num_shards=1)`."""
    return build_directory


@pytest.fixture(scope="session")
def shard_directory(tmp_path_factory: pytest.TempPathFactory) -> ShardDirectory:
    """24 clips in three tars, on disk for the whole session: do not change it (copy `.path` first).

    Each split has all four categories in turn (train 14, val 5, test 5; key `train00`, `val00`, ...), each clip its
    own person, so that 4 clips of `train` are real.
    """
    categories = [(0, 0), (1, 1), (0, 1), (1, 0)]
    samples = []
    for split, count in (("train", 14), ("val", 5), ("test", 5)):
        for i in range(count):
            video, audio = categories[i % 4]
            key = f"{split}{i:02d}"
            samples.append(
                build_sample(
                    key, split=split, is_fake=None, video_is_fake=video, audio_is_fake=audio, methods=[f"m{i % 2}"]
                )
            )
    return build_directory(tmp_path_factory.mktemp("shards") / "made", samples, num_shards=3)


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Config]:
    """Builds a config of a network that trains in seconds: `tiny_config(stage="pretrain", data={...}, engine={...})`.

    Clips have 8 frames at 5 per second (1.6 s), 32 pixels and 256 x 32 log-mel frames in 4 slices, so they fit
    `make_sample` and `shard_directory`. Sections given as keywords override single values:
    `tiny_config(data={"train": [{"path": str(shard_directory.path)}]})`. Runs go to `tmp_path / "runs"`.
    """

    def make(stage: str = "pretrain", **overrides: Any) -> Config:
        values: dict[str, Any] = {
            "name": "tiny",
            "stage": stage,
            "runs_dir": str(tmp_path / "runs"),
            "clip": {"num_frames": 8, "image_size": 32, "hop_samples": 100, "num_mel_bins": 32, "num_slices": 4},
            "model": {"size": "tiny", "critic_width": 32},
            "pretrain": {"contrastive_group_size": 4},
            "data": {"num_workers": 0, "decoder": "decord", "labels": "real" if stage == "pretrain" else "known"},
            "optim": {"num_steps": 8, "warmup_steps": 2},
            "engine": {"global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "num_threads": 1},
            "logging": {"progress": False, "wandb": "disabled", "log_every_steps": 1},
        }
        for name, value in overrides.items():
            values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
        return from_dict(Config, values, where="tiny_config")

    return make


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts processes without the seconds that imports take: `forks.run(script, *arguments, num_ranks=2, output=...)`."""
    with Forks() as started:
        yield started


@pytest.fixture(scope="session")
def torchcodec() -> None:
    """Skips, saying so, where torchcodec or the FFmpeg that it needs cannot be loaded."""
    try:
        require_decoder("torchcodec")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real video that AVFF_REAL_CLIPS names; skips, saying so, without it."""
    folder = os.environ.get("AVFF_REAL_CLIPS", "")
    if not folder:
        pytest.skip("AVFF_REAL_CLIPS is not set: no folder of real clips on this machine")
    if not (Path(folder) / "manifest.csv").is_file():
        pytest.fail(f"AVFF_REAL_CLIPS={folder} holds no manifest.csv")
    return Path(folder)


@pytest.fixture(scope="session")
def real_face_shards(real_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardDirectory:
    """All real clips through `tools/make_shards.py` in mode faces, built once: most of its time is face detection."""
    output = tmp_path_factory.mktemp("real_faces") / "shards"
    columns = "num_faces,has_audio,origin"
    command = [sys.executable, str(MAKE_SHARDS), "--input", str(real_clips / "manifest.csv"), "--output", str(output)]
    command += ["--extra-columns", columns, "--split", "train", "--set", f"side_pixels={STORED_SIDE}"]
    subprocess.run([*command, "--num-workers", "2"], check=True, timeout=600)
    return open_directory(output)
