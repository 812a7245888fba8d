"""Generated folders: same seed, same bytes; what is there is kept; nothing else is mixed in."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from avff.errors import ConfigError
from avff.media.synthetic import SplitPlan, generate_general_videos, generate_talking_heads
from avff.media.synthetic.general import _THINGS, SceneRecipe
from avff.media.synthetic.talking_heads import HeadRecipe
from avff.media.synthetic.voice import CONTROL_HZ, SAMPLE_RATE_HZ
from avff.media.synthetic.writing import encode_clip
from avff.seeding import generator

PLAN = {"test": SplitPlan(num_people=2, clips_per_person={"RVFA": 1})}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def heads_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    generate_talking_heads(folder, plan=PLAN, seed=1, num_workers=0, progress=False)
    return folder


def test_a_folder_holds_clips_and_their_rows(heads_folder: Path):
    rows = list(csv.DictReader((heads_folder / "metadata.csv").open()))
    assert [row["video_name"] for row in rows] == ["videos/person_0000_00.mp4", "videos/person_0001_00.mp4"]
    assert {row["split"] for row in rows} == {"test"} and {row["category"] for row in rows} == {"RVFA"}
    assert set(contents(heads_folder)) == {row["video_name"] for row in rows} | {"metadata.csv", "generator.json"}


def test_a_clip_is_ordinary_mp4_with_sound_as_long_as_its_picture(heads_folder: Path):
    with av.open(heads_folder / "videos/person_0000_00.mp4") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert video.average_rate == 25
        seconds = [float(stream.duration * stream.time_base) for stream in (video, audio)]
        assert 3.8 < seconds[0] < 4.4
        assert seconds[0] == pytest.approx(seconds[1], abs=0.1)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(heads_folder: Path):
    before = contents(heads_folder)
    (heads_folder / "videos/person_0001_00.mp4").unlink()
    kept = heads_folder / "videos/person_0000_00.mp4"
    written = kept.stat().st_mtime_ns
    summary = generate_talking_heads(heads_folder, plan=PLAN, seed=1, num_workers=0, progress=False)
    assert (summary.num_written, summary.num_kept) == (1, 1)
    assert contents(heads_folder) == before
    assert kept.stat().st_mtime_ns == written


def test_a_folder_of_another_seed_is_refused(heads_folder: Path):
    with pytest.raises(ConfigError, match="seed is 1, now 2; choose another folder"):
        generate_talking_heads(heads_folder, plan=PLAN, seed=2, num_workers=0, progress=False)


@pytest.mark.slow
def test_worker_processes_change_no_byte(heads_folder: Path, tmp_path: Path):
    generate_talking_heads(tmp_path, plan=PLAN, seed=1, num_workers=2, progress=False)
    assert contents(tmp_path) == contents(heads_folder)


@pytest.mark.slow
def test_forging_does_not_change_the_size_of_files(tmp_path: Path):
    ratios = []
    for number in range(0, 24, 2):
        sizes = []
        for category in ("RVRA", "FVFA"):
            head = HeadRecipe(5, f"person_{number:04d}", f"person_{number + 1:04d}", 0, category, "train")
            encode_clip(head.make(), tmp_path / "clip.mp4")
            sizes.append((tmp_path / "clip.mp4").stat().st_size)
        ratios.append(np.log(sizes[1] / sizes[0]))
    assert abs(np.mean(ratios)) < 0.05


def test_general_videos_are_all_real_and_split(tmp_path: Path):
    generate_general_videos(tmp_path, num_clips=2, validation_share=0.5, seed=3, num_workers=0, progress=False)
    rows = list(csv.DictReader((tmp_path / "metadata.csv").open()))
    assert [(row["target"], row["category"], row["split"]) for row in rows] == [
        ("0", "RVRA", "train"),
        ("0", "RVRA", "val"),
    ]
    assert all((tmp_path / row["video_name"]).stat().st_size > 10_000 for row in rows)


@pytest.mark.parametrize("kind", _THINGS, ids=lambda kind: kind.__name__)
def test_things_sound_when_they_move(kind):
    at_lags = []
    for number in range(5):
        thing = kind(generator(number, "thing"), 4 * CONTROL_HZ)
        hop = SAMPLE_RATE_HZ // CONTROL_HZ
        heard = np.convolve(np.abs(thing.waveform).reshape(-1, hop).max(axis=1), np.ones(4) / 4, "same")
        at_lags.append([np.corrcoef(np.roll(thing.glow, lag), heard)[0, 1] for lag in range(-80, 81, 4)])
    mean_by_lag = np.mean(at_lags, axis=0)
    assert mean_by_lag[20] > 0.6
    assert abs(int(np.argmax(mean_by_lag)) - 20) <= 1


def test_scenes_hold_one_or_two_different_things():
    counts = {len(SceneRecipe(0, index, "train").things(100)) for index in range(12)}
    assert counts == {1, 2}


def test_an_impossible_share_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"validation_share is 1\.5"):
        generate_general_videos(tmp_path, num_clips=2, validation_share=1.5)
