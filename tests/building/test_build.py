"""Shard directories: the same bytes whatever happens on the way."""

import csv
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from little_media import content

from avff.build_config import BuildConfig
from avff.building.build import build_shards
from avff.building.plan import BuildPlan, plan_build
from avff.building.samples import segment_labels, shift_segments
from avff.building.sources import Source, read_sources
from avff.building.workers import run_in
from avff.data.shards import open_directory, read_sample
from avff.errors import ConfigError, MediaError
from avff.schema import FakeSegments, VideoInfo

CONFIG = BuildConfig(mode="frame", min_seconds=3.2)
SHARD_BYTES = 150_000


def plan(folder: Path, output: Path, config: BuildConfig = CONFIG, **options) -> BuildPlan:
    return plan_build(read_sources(folder), output, config, shard_bytes=SHARD_BYTES, **options)


def build(folder: Path, output: Path, *, num_workers: int = 0, num_shares: int = 0, **options):
    return build_shards(plan(folder, output, **options), num_workers=num_workers, num_shares=num_shares)


@pytest.fixture(scope="module")
def built(media_folder, tmp_path_factory) -> Path:
    """The uninterrupted build in one process that all others have to equal."""
    output = tmp_path_factory.mktemp("built") / "shards"
    build(media_folder, output)
    return output


def test_everything_decodable_is_in_it_and_the_rest_is_listed(built):
    directory = open_directory(built)
    assert len(directory.shards) > 1
    assert sorted(row.key for row in directory.rows) == [
        *(f"a_clip_{n}_0000" for n in (0, 2, 4)),
        *(f"b_clip_{n}_0000" for n in (1, 3, 5)),
        "mute_0000",
        "short_0000",
    ]
    status = {row.key: row.status for row in directory.rows}
    assert (status["mute_0000"], status["short_0000"]) == (("NO_AUDIO",), ("TOO_SHORT",))
    assert list(csv.DictReader((built / "rejects.csv").open())) == [
        {
            "source_path": "broken.mp4",
            "reason": "UNDECODABLE",
            "detail": "cannot be decoded: Invalid data found when processing input",
        }
    ]
    assert directory.manifest["rejects"] == {"UNDECODABLE": 1}
    assert set(content(built)) == {
        "build.json",
        "manifest.json",
        "rejects.csv",
        *(name for info in directory.shards for name in (info.name, info.name.replace(".tar", ".index.jsonl"))),
    }


def test_samples_read_back_with_their_metadata(built):
    directory = open_directory(built)
    row = next(row for row in directory.rows if row.key == "a_clip_2_0000")
    sample = read_sample(directory, row)
    assert sample.metadata.source_path == "a/clip 2.mov"
    assert set(sample.members) == {"flac", "frame.mp4"}
    assert sample.metadata.video.num_frames == 20 and sample.metadata.audio.num_samples == 64000


@pytest.mark.slow
def test_number_of_processes_does_not_matter(media_folder, built, tmp_path):
    build(media_folder, tmp_path / "two", num_workers=2)
    assert content(tmp_path / "two") == content(built)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_and_continued_equals_uninterrupted(media_folder, built, tmp_path, num_workers):
    output = kill_in_the_middle(media_folder, tmp_path, num_workers)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*.tar")}
    summary = build(media_folder, output)
    assert not summary.already_complete
    assert content(output) == content(built)
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before  # finished shards are not redone


def kill_in_the_middle(media_folder: Path, folder: Path, num_workers: int) -> Path:
    """Returns what a killed build has left; one that was done before it was seen to have begun is no example."""
    for attempt in range(20):
        output = folder / str(attempt)
        process = multiprocessing.get_context("spawn").Process(
            target=build, args=(media_folder, output), kwargs={"num_workers": num_workers}
        )
        process.start()
        while process.is_alive() and len([*output.glob(".parts/part-*.json"), *output.glob("shard-*.tar")]) < 2:
            time.sleep(0.002)
        process.kill()
        process.join()
        if not (output / "manifest.json").exists():
            assert [*output.glob(".parts/part-*.json"), *output.glob("shard-*.tar")]
            return output
    raise AssertionError("no build was caught in the middle")


def test_rerun_does_nothing(media_folder, tmp_path):
    output = tmp_path / "shards"
    build(media_folder, output)
    times = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    summary = build(media_folder, output)
    assert summary.already_complete
    assert (summary.num_samples, summary.num_rejects) == (8, {"UNDECODABLE": 1})
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == times


def test_lost_shard_is_rebuilt_and_the_others_are_kept(media_folder, built, tmp_path):
    output = tmp_path / "shards"
    build(media_folder, output)
    first, second, *_ = sorted(output.glob("shard-*.tar"))
    kept = second.stat().st_mtime_ns
    first.unlink()
    build(media_folder, output)
    assert content(output) == content(built)
    assert second.stat().st_mtime_ns == kept


def test_other_arguments_are_refused_with_both_values(media_folder, built):
    with pytest.raises(ConfigError, match=r"build\.profile was 'pretrain', now 'evidence'.*name a new folder"):
        build(media_folder, built, config=BuildConfig(mode="frame", profile="evidence"))
    with pytest.raises(ConfigError, match="num_sources was 9, now 3"):
        build(media_folder / "a", built)


def test_foreign_folder_is_refused(media_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="was not built by make_shards"):
        build(media_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_statuses_can_be_rejected(media_folder, tmp_path):
    summary = build(media_folder, tmp_path / "shards", reject=frozenset({"NO_AUDIO", "TOO_SHORT"}))
    assert summary.num_rejects == {"NO_AUDIO": 1, "TOO_SHORT": 1, "UNDECODABLE": 1}
    assert summary.by_status == {"OK": 6}
    with pytest.raises(ConfigError, match="reject TOO_LONG: choose among NO_FACE, NO_AUDIO, TOO_SHORT"):
        build(media_folder, tmp_path / "other", reject=frozenset({"TOO_LONG"}))


def test_nothing_decodable_leaves_nothing_behind(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.mp4").write_bytes(b"nothing" * 50)
    with pytest.raises(MediaError, match=r"none of 1 sources gave a sample: x\.mp4: UNDECODABLE"):
        build(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_box_file_of_other_videos_is_refused(media_folder, tmp_path):
    config = BuildConfig(mode="boxes")
    with pytest.raises(
        ConfigError, match=r"none of the 1 names in the box file, such as 'x\.mp4', is a source, such as"
    ):
        plan(media_folder, tmp_path / "out", config, boxes={"x.mp4": {}})


@pytest.mark.slow
def test_dead_worker_stops_the_build_and_names_the_way_on(tmp_path):
    (task,) = plan(Path(__file__), tmp_path).tasks
    with pytest.raises(MediaError, match=r"a worker process died.*run the same command again"), run_in(1) as run_all:
        list(run_all([task._replace(config=_Bomb())]))


class _Bomb:
    """Ends the process that unpickles it, as a crash inside a decoder would."""

    def __reduce__(self):
        return os._exit, (9,)


def test_fake_stretches_move_with_their_segment():
    video = VideoInfo(width=1, height=1, fps_source=25, fps=5, num_frames=50, start_seconds=10.0, duration_seconds=10.0)
    source = FakeSegments(video=[[2.0, 5.0], [8.0, 12.5], [19.0, 30.0]], audio=[])
    assert shift_segments(source, video) == FakeSegments(video=[[0.0, 2.5], [9.0, 10.0]], audio=[])
    assert shift_segments(None, video) is None


@pytest.mark.parametrize(
    ("labels", "stretches", "expected"),
    [
        # Of a file that is forged from 12 to 13 s; the segments are [0, 10) and [10, 20).
        ((1, 1, 0), {"video": [[12.0, 13.0]]}, [(None, 0, 0), (1, 1, 0)]),
        ((1, 1, 1), {"video": [[12.0, 13.0]]}, [(None, 0, 1), (1, 1, 1)]),  # no stretch of sound named: all of it
        ((1, None, None), {"video": [[12.0, 13.0]]}, [(None, 0, None), (1, None, None)]),
        ((0, 0, 0), {}, [(0, 0, 0), (0, 0, 0)]),
        ((1, 1, 0), None, [(1, 1, 0), (1, 1, 0)]),
    ],
)
def test_a_segment_without_its_files_forged_stretch_is_real(tmp_path, labels, stretches, expected):
    named = dict(zip(("is_fake", "video_is_fake", "audio_is_fake"), labels, strict=True))
    segments = None if stretches is None else FakeSegments(**stretches)
    source = Source(path=tmp_path / "a.mp4", name="a.mp4", source_key="a", fake_segments_seconds=segments, **named)
    common = {"width": 1, "height": 1, "fps_source": 25, "fps": 5, "num_frames": 50, "duration_seconds": 10.0}
    videos = [VideoInfo(start_seconds=start, **common) for start in (0.0, 10.0)]
    assert [segment_labels(source, shift_segments(segments, video)) for video in videos] == expected
