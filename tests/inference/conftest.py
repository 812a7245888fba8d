"""A run folder with one committed checkpoint of a tiny classifier with random weights."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from avff import run_folder
from avff.build_config import BuildConfig
from avff.checkpoint_files import list_files
from avff.config import Config, save_config
from avff.data.shards import ShardDirectory
from avff.files import sha256_of
from avff.inference.detector import Detector
from avff.inference.load import load_detector
from avff.models.build import build_model
from avff.models.weights import make_sidecar, save_weights
from avff.strict_yaml import from_dict, to_dict


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks run slower on several threads, the more so beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_run(
    config: Config, build: BuildConfig | None, validation: dict[str, Any] | None, trained_on: list[dict[str, Any]]
) -> Path:
    """Writes what inference reads of a run: config, committed weights, state."""
    directory = run_folder.checkpoint_dir(config.run_dir, 7)
    directory.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    plain_build = None if build is None else to_dict(build)
    sidecar = make_sidecar(
        "random weights", config, build=plain_build, step=7, validation=validation, trained_on=trained_on
    )
    for name in (run_folder.WEIGHTS, run_folder.EMA) if config.optim.ema_decay else (run_folder.WEIGHTS,):
        save_weights(directory / name, build_model(config).state_dict(), sidecar)
    state = {"step": 7, "build": plain_build, "validation": validation, "trained_on": trained_on}
    (directory / run_folder.STATE).write_text(json.dumps(state))
    (directory / run_folder.FILES).write_text(json.dumps(list_files(directory, list(directory.iterdir()))))
    (directory / run_folder.COMMIT).write_text(sha256_of(directory / run_folder.FILES))
    return config.run_dir


@pytest.fixture
def make_run(tiny_config: Callable[..., Config], shard_directory: ShardDirectory) -> Callable[..., Path]:
    """Writes a run: `make_run(stage="finetune", build=BuildConfig(...), threshold=0.5, trained_on=[], **config sections)`.

    Without `build` it fits `shard_directory`; `build=None` records nothing, `threshold=None` no validation.
    """
    fitting = from_dict(BuildConfig, shard_directory.manifest["build"], where="manifest")

    def make(
        stage: str = "finetune",
        build: BuildConfig | None = fitting,
        threshold: float | None = 0.5,
        trained_on: Sequence[dict[str, Any]] = (),
        **config: Any,
    ) -> Path:
        validation = {"metric": "auc", "value": 0.7, "higher_is_better": True, "threshold": threshold}
        return write_run(
            tiny_config(stage, **config), build, None if threshold is None else validation, list(trained_on)
        )

    return make


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Writes an ordinary mp4 of moving stripes and a gliding tone: `write_video(path, seconds, sound=True)`."""

    def write(path: Path, seconds: float = 3.0, sound: bool = True) -> Path:
        frames_per_second, rate_hz = 25, 16000
        t_N = np.arange(round(seconds * rate_hz)) / rate_hz
        wave_N = (0.3 * np.sin(2 * np.pi * (200 + 40 * t_N) * t_N)).astype(np.float32)
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=frames_per_second)
            video.width, video.height, video.pix_fmt, video.thread_count = 96, 64, "yuv420p", 1
            audio = container.add_stream("aac", rate=rate_hz, layout="mono") if sound else None
            for index in range(round(seconds * frames_per_second)):
                x = np.arange(96)[None, :, None] + np.zeros((64, 1, 3))
                picture = (128 + 100 * np.sin((x + 3 * index) / (5 + np.arange(3)))).astype(np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
            if audio is not None:
                frame = av.AudioFrame.from_ndarray(wave_N[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = rate_hz, 0
                container.mux(audio.encode(frame))
                container.mux(audio.encode(None))
        return path

    return write


@pytest.fixture
def frame_detector(make_run: Callable[..., Path]) -> Detector:
    """A detector of whole frames in segments of 2 s, random weights."""
    build = BuildConfig(mode="frame", segment_seconds=2.0, min_seconds=1.6)
    return load_detector(str(make_run(build=build)), device="cpu")
