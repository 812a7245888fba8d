"""Fixtures that every room's tests share: real little samples, shard directories, a tiny config.

`shard_directory` is what most tests want: three tars of 24 clips on disk, opened with `open_directory`.
`make_sample` builds one sample with chosen labels, length, faces and content; `tiny_config` fits both.
"""

import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from avff.build_config import BuildConfig
from avff.config import Config
from avff.data.shards import Sample, ShardDirectory, open_directory, write_manifest, write_shard
from avff.schema import AudioInfo, EncoderInfo, SampleMetadata, Track, VideoInfo, complete_labels
from avff.seeding import generator
from avff.strict_yaml import from_dict, to_dict

STORED_RATE = 5.0
STORED_SIDE = 64
SAMPLE_RATE_HZ = 16000
MAKE_SHARDS = Path(__file__).parents[1] / "tools" / "make_shards.py"


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    """Leaves Python's, NumPy's and torch's global random state as the test found it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def encode_video(video_THWC: np.ndarray, frames_per_second: float, crf: int = 18, gop_frames: int = 8) -> bytes:
    """Returns frames as h264 4:2:0 mp4 with a short GOP, as shards hold it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
        stream.height, stream.width = video_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "ultrafast", "g": str(gop_frames), "bf": "0"}
        for image in video_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def encode_flac(sound_N: np.ndarray) -> bytes:
    """Returns int16 mono sound at 16 kHz as FLAC."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(sound_N.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _moving_picture(key: str, num_frames: int) -> np.ndarray:
    """A gradient that moves at the key's own pace, with noise; uint8."""
    rng = generator("picture", key)
    x = np.arange(STORED_SIDE)
    wave = np.sin(
        x[None, :, None] / 6 + x[None, None, :] / 9 + rng.uniform(0.2, 1.0) * np.arange(num_frames)[:, None, None]
    )
    colour = rng.uniform(30, 100, size=3)
    noise = rng.normal(0, 5, size=(num_frames, STORED_SIDE, STORED_SIDE, 3))
    return np.clip(128 + wave[..., None] * colour + noise, 0, 255).astype(np.uint8)


def _tone(key: str, num_samples: int) -> np.ndarray:
    """A tone of the key's own pitch with noise; int16."""
    rng = generator("tone", key)
    time = np.arange(num_samples) / SAMPLE_RATE_HZ
    tone = 0.2 * np.sin(2 * np.pi * rng.uniform(150, 600) * time) + rng.normal(0, 0.01, size=num_samples)
    return np.round(tone * 32767).astype(np.int16)


def _track(index: int, first_frame: int, num_frames: int, is_speaker: bool | None, is_fake: Any) -> Track:
    return Track(
        id=index,
        identity=index,
        first_frame=first_frame,
        num_frames=num_frames,
        boxes=[[10.0, 10.0, 40.0, 40.0]] * num_frames,
        scores=[0.99] * num_frames,
        detected=[True] * num_frames,
        area_ratio=0.3,
        crop_centres=[[25.0, 25.0]] * num_frames,
        crop_half_sides=[20.0] * num_frames,
        is_fake=is_fake,
        is_speaker=is_speaker,
    )


def build_sample(
    key: str,
    *,
    split: str = "train",
    is_fake: int | None = 0,
    video_is_fake: int | None = None,
    audio_is_fake: int | None = None,
    group_ids: list[str] | None = None,
    dataset: str = "made",
    num_frames: int = 16,
    frames_per_second: float = STORED_RATE,
    tracks: list[tuple[int, int]] | None = None,
    speakers: list[bool | None] | None = None,
    track_labels: list[int | None] | None = None,
    video_THWC: np.ndarray | None = None,
    sound_N: np.ndarray | None = None,
    status: list[str] | None = None,
    **metadata: Any,
) -> Sample:
    """See the fixture `make_sample`."""
    status = status or ["OK"]
    labels = complete_labels(is_fake, video_is_fake, audio_is_fake)
    duration = num_frames / frames_per_second
    picture = _moving_picture(key, num_frames) if video_THWC is None else video_THWC
    sound = _tone(key, round(duration * SAMPLE_RATE_HZ)) if sound_N is None else sound_N
    ranges = [] if "NO_FACE" in status else tracks
    if ranges is None:
        ranges = [(0, num_frames)]
    members = {f"face{i}.mp4": encode_video(picture[a : a + n], frames_per_second) for i, (a, n) in enumerate(ranges)}
    if tracks == [] and "NO_FACE" not in status:
        members["frame.mp4"] = encode_video(picture, frames_per_second)
    if "NO_AUDIO" not in status:
        members["flac"] = encode_flac(sound)
    unknown = [None] * len(ranges)
    described = zip(ranges, speakers or unknown, track_labels or unknown, strict=True)
    return Sample(
        SampleMetadata(
            key=key,
            source_key=key,
            dataset=dataset,
            split=split,  # type: ignore[arg-type]
            source_path=f"{key}.mp4",
            source_sha256="0" * 64,
            segment=0,
            group_ids=[f"person_{key}"] if group_ids is None else group_ids,
            is_fake=labels[0],
            video_is_fake=labels[1],
            audio_is_fake=labels[2],
            category=labels[3],
            methods=metadata.pop("methods", []),
            fake_segments_seconds=metadata.pop("fake_segments_seconds", None),
            video=VideoInfo(
                width=64,
                height=64,
                fps_source=25.0,
                fps=frames_per_second,
                num_frames=num_frames,
                start_seconds=0.0,
                duration_seconds=duration,
            ),
            audio=AudioInfo(has_audio="flac" in members, num_samples=len(sound) if "flac" in members else 0),
            tracks=[_track(i, a, n, speaker, fake) for i, ((a, n), speaker, fake) in enumerate(described)],
            encoder=EncoderInfo(profile="test", codec="h264", parameters={"crf": 18}),
            status=status,  # type: ignore[arg-type]
            **metadata,
        ),
        members,
    )


def build_directory(path: Path, samples: list[Sample], num_shards: int = 1) -> ShardDirectory:
    """See the fixture `write_directory`."""
    size = -(-len(samples) // num_shards)
    parts = [samples[i : i + size] for i in range(0, len(samples), size)]
    shards = [write_shard(path, f"shard-{i:06d}.tar", part) for i, part in enumerate(parts)]
    build = to_dict(BuildConfig(profile="pretrain", side_pixels=STORED_SIDE, min_seconds=1.6))
    write_manifest(path, shards, build=build, arguments={"input": "made"}, rejects={})
    return open_directory(path)


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
            "data": {"num_workers": 0, "labels": "real" if stage == "pretrain" else "known"},
            "optim": {"num_steps": 8, "warmup_steps": 2},
            "engine": {"global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "num_threads": 1},
            "logging": {"progress": False, "wandb": "disabled", "log_every_steps": 1},
        }
        for name, value in overrides.items():
            values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
        return from_dict(Config, values, where="tiny_config")

    return make


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
