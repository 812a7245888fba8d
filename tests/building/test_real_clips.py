"""Real clips through make_shards; they are not part of the project (AVFF_REAL_CLIPS names their folder)."""

import csv
import io
from pathlib import Path

import av
import numpy as np
import pytest

from avff.build_config import BuildConfig
from avff.building.build import build_shards
from avff.building.plan import plan_build
from avff.building.sources import read_sources
from avff.data.shards import Sample, ShardDirectory, open_directory, read_sample

pytestmark = [pytest.mark.real_clips, pytest.mark.slow]
CORRUPT = "decord_corrupted.mp4"
ROTATED = "decord_rotated_90.mov"
SYNC = "energon_sync_test.mp4"


def samples_of(directory: ShardDirectory) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    for row in directory.rows:
        sample = read_sample(directory, row)
        samples.setdefault(sample.metadata.source_path, []).append(sample)
    return samples


@pytest.fixture(scope="module")
def whole_frames(real_clips, tmp_path_factory) -> ShardDirectory:
    output = tmp_path_factory.mktemp("frames") / "shards"
    sources = [source for source in read_sources(real_clips) if source.name in (ROTATED, SYNC)]
    build_shards(plan_build(sources, output, BuildConfig(mode="frame", profile="evidence")))
    return open_directory(output)


def test_every_decodable_clip_is_built_and_the_corrupt_one_listed(real_clips, real_face_shards):
    expected = {row["video_name"] for row in csv.DictReader((real_clips / "manifest.csv").open())}
    assert set(samples_of(real_face_shards)) == expected - {CORRUPT}
    rejects = list(csv.DictReader((real_face_shards.path / "rejects.csv").open()))
    assert [(r["source_path"], r["reason"]) for r in rejects] == [(CORRUPT, "UNDECODABLE")]
    assert "Invalid data found when processing input" in rejects[0]["detail"]


def test_faces_are_where_the_manifest_says(real_face_shards):
    for name, samples in samples_of(real_face_shards).items():
        for sample in samples:
            expected = int(sample.metadata.extra["num_faces"])
            assert len(sample.metadata.tracks) == expected, name
            assert ("NO_FACE" in sample.metadata.status) == (expected == 0)
            assert sample.metadata.audio.has_audio == (sample.metadata.extra["has_audio"] == "1")
            assert all(t.num_frames == sample.metadata.video.num_frames for t in sample.metadata.tracks), name
    two_faces = samples_of(real_face_shards)["mintime_fake_2_faces_2.mp4"][0].metadata.tracks
    assert {track.identity for track in two_faces} == {0, 1}


def test_rotated_clip_is_upright(whole_frames):
    (sample,) = samples_of(whole_frames)[ROTATED]
    assert (sample.metadata.video.width, sample.metadata.video.height) == (320, 568)
    with av.open(io.BytesIO(sample.members["frame.mp4"])) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="gray").astype(float)
    assert picture.shape == (454, 256)
    # A keyboard: its rows of keys run across, so dark gaps make rows differ more than columns.
    assert picture.mean(axis=1).std() > picture.mean(axis=0).std()


def test_flash_and_beep_of_the_source_stay_where_they_are(real_clips, whole_frames):
    """Both onsets are read in the source without our reader, and in the stored segments."""
    seen, heard = [], []
    for sample in samples_of(whole_frames)[SYNC]:
        start = sample.metadata.video.start_seconds
        stop = start + sample.metadata.video.duration_seconds
        seen += [start + t for t in flashes(io.BytesIO(sample.members["frame.mp4"]))]
        heard += [start + t for t in beeps(io.BytesIO(sample.members["flac"]))]
    # The source's last 3 s are a remainder that is not stored.
    source_seen = np.array([t for t in flashes(real_clips / SYNC) if t < stop])
    source_heard = np.array([t for t in beeps(real_clips / SYNC) if t < stop])
    assert len(seen) == len(source_seen) >= 50 and len(heard) == len(source_heard) >= 50
    assert np.abs(heard - source_heard).max() < 0.002
    assert np.abs(seen - source_seen).max() <= 0.5 / 25 + 1 / 30
    # The light is on before the first beep; every later beep comes with a flash.
    pairs = [(t, nearest(seen, t)) for t in heard if abs(nearest(seen, t) - t) < 0.3]
    source_pairs = [(t, nearest(source_seen, t)) for t in source_heard if abs(nearest(source_seen, t) - t) < 0.3]
    assert len(pairs) == len(source_pairs) >= 50
    moved = np.subtract(*np.transpose(pairs)) - np.subtract(*np.transpose(source_pairs))
    assert np.abs(moved).max() <= 0.020


def flashes(file: Path | io.BytesIO) -> list[float]:
    """Seconds at which the red light on the right goes on."""
    with av.open(file if isinstance(file, io.BytesIO) else str(file)) as container:
        lights = [(float(f.time), redness(f.to_ndarray(format="rgb24"))) for f in container.decode(video=0)]
    times, red_T = zip(*lights, strict=True)
    return [times[n + 1] for n in np.flatnonzero(np.diff((np.array(red_T) > 60).astype(int)) == 1)]


def redness(picture_HWC: np.ndarray) -> float:
    """How much more red than green there is where the light is."""
    height, width = picture_HWC.shape[:2]
    light = picture_HWC[height // 5 : 2 * height // 3, 4 * width // 7 :]
    red, green = (light[:, :, channel].mean() for channel in (0, 1))
    return red - green


def beeps(file: Path | io.BytesIO) -> list[float]:
    """Seconds at which sound sets in after silence."""
    with av.open(file if isinstance(file, io.BytesIO) else str(file)) as container:
        frames = [f.to_ndarray() for f in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    samples = np.concatenate([f.astype(float) / (32768 if f.dtype == np.int16 else 1) for f in frames], axis=1)
    loud = np.flatnonzero(np.abs(samples.mean(axis=0)) > 0.1) / rate
    return [loud[0], *loud[1:][np.diff(loud) > 0.1]]


def nearest(values, target: float) -> float:
    return min(values, key=lambda value: abs(value - target))
