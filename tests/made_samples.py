"""Real little samples (h264 and FLAC) and shard directories, made in memory; tests/conftest.py has fixtures of them."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avff.build_config import BuildConfig
from avff.data.shards import Sample, ShardDirectory, open_directory, write_manifest, write_shard
from avff.schema import AudioInfo, EncoderInfo, SampleMetadata, Track, VideoInfo, complete_labels
from avff.seeding import generator
from avff.strict_yaml import to_dict

STORED_RATE = 5.0
STORED_SIDE = 64
SAMPLE_RATE_HZ = 16000


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
    """Builds one real sample in memory; the fixture `make_sample` explains the keywords."""
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
    """Writes samples into a shard directory and opens it."""
    size = -(-len(samples) // num_shards)
    parts = [samples[i : i + size] for i in range(0, len(samples), size)]
    shards = [write_shard(path, f"shard-{i:06d}.tar", part) for i, part in enumerate(parts)]
    build = to_dict(BuildConfig(profile="pretrain", side_pixels=STORED_SIDE, min_seconds=1.6))
    write_manifest(path, shards, build=build, arguments={"input": "made"}, rejects={})
    return open_directory(path)
