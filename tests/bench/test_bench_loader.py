"""tools/bench.py loader: what it reads, counts and writes, not how fast anything is."""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench

from avff.bench.loader import Contender, measure
from avff.bench.loader_clips import find_clips
from avff.bench.usual_loader import UsualClips, stretches, whole_files
from avff.config import ClipConfig
from avff.media.synthetic import generate_general_videos

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


def arguments_of(folder, *more):
    return [
        "loader",
        "--folder",
        str(folder),
        "--clips",
        "4",
        "--usual-clips",
        "2",
        "--batch",
        "2",
        "--rounds",
        "1",
        *more,
    ]


def test_every_loader_has_a_row_per_cache_and_number_of_workers(folder, capsys):
    assert bench.main(arguments_of(folder, "--workers", "0", "1")) == 0
    report = json.loads((folder / "loader.json").read_text())
    kinds = [(row["loader"], row["cache"], row["workers"]) for row in report["rows"]]
    names = ["avff", "webdataset", "usual", "whole file"]
    assert sorted(kinds) == sorted(itertools.product(names, ["page cache", "cold"], [0, 1]))
    for row in report["rows"]:
        assert row["clips_per_second"] > 0 and row["clips_per_second_per_core"] > 0
    usual = {(row["cache"], row["workers"]): row for row in report["rows"] if row["loader"] == "usual"}
    for row in report["rows"]:
        beside = usual[row["cache"], row["workers"]]
        ratio = row["clips_per_second_per_core"] / beside["clips_per_second_per_core"]
        assert row["to_usual"] == pytest.approx(ratio)
    assert "to_usual" in capsys.readouterr().out


def test_shards_without_their_sources_are_compared_with_webdataset_only(folder):
    shards = folder / "loader" / "generated" / "frame" / "shards_4"
    assert bench.main(arguments_of(folder, "--workers", "0", "--shards", str(shards))) == 0
    rows = json.loads((folder / "loader.json").read_text())["rows"]
    assert {row["loader"] for row in rows} == {"avff", "webdataset"} and {row["to_usual"] for row in rows} == {None}


def test_clips_that_workers_cannot_share_are_refused_with_numbers_that_they_can(folder, capsys):
    assert bench.main(arguments_of(folder, "--workers", "0", "3")) == 2
    said = (
        "--clips 4: has to be a multiple of 6, so that --workers 0 3 share batches of 2 evenly: write --clips 6 or 12"
    )
    assert said in capsys.readouterr().err
    assert bench.main(arguments_of(folder, "--workers", "3", "--clips", "20")) == 2
    assert "write --clips 18 or 24" in capsys.readouterr().err


def test_the_usual_way_shows_the_same_pictures_and_sound_as_the_shards(folder):
    media, samples, _ = find_clips(bench.parse_arguments(arguments_of(folder)))
    clip = ClipConfig()
    for found in (stretches(samples, media), whole_files(samples, media)):
        dataset = UsualClips(found, clip, len(found))
        for video_CTHW, mel_MF in (dataset[index] for index in range(len(found))):
            assert video_CTHW.shape == (3, 16, 224, 224) and mel_MF.shape == (1024, 128)
            assert video_CTHW.std() > 0.1 and np.isfinite(mel_MF.numpy()).all()


def test_cpu_seconds_of_processes_that_ended_count():
    def work(num_workers):
        pid = os.fork()
        if pid == 0:
            start = os.times()
            while os.times().user - start.user < 0.5:
                pass
            os._exit(0)
        os.waitpid(pid, 0)
        yield None

    turn = measure(Contender("work", 1, work, ()), 0)
    assert turn.clips_per_second_per_core < 1 / 0.5


def test_memory_is_read_at_regular_steps(folder):
    assert bench.main(arguments_of(folder, "--memory", "--steps", "40", "--workers", "2")) == 0
    rows = json.loads((folder / "loader-memory.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [str(step) for step in range(4, 41, 4)] + ["growth per 1000"]
    assert all(row["workers_uss_megabytes"] > 1 and row["trainer_rss_megabytes"] > 10 for row in rows[:-1])


def test_face_crops_are_read_where_faces_are_stored(folder):
    """Generated media have to have faces then."""
    _, samples, directory = find_clips(bench.parse_arguments(arguments_of(folder, "--mode", "faces")))
    assert len(directory.rows) == 4 and all("face0.mp4" in sample.members for sample in samples)


def test_media_of_which_nothing_can_be_used_are_an_error_with_the_way_out(folder, tmp_path, capsys):
    generate_general_videos(tmp_path / "media", num_clips=1, num_workers=1, progress=False)
    assert bench.main(arguments_of(folder, "--input", str(tmp_path / "media"), "--mode", "faces")) == 2
    said = capsys.readouterr().err
    assert "no usable sample in --mode faces (NO_FACE): name" in said
    assert "an --input folder with talking faces, or write --mode frame" in said


def test_parts_of_a_clip_add_up(folder, capsys):
    assert bench.main(arguments_of(folder, "--profile", "--workers", "0", "3")) == 0
    rows = json.loads((folder / "loader-profile.json").read_text())["rows"]
    found = {row["part"]: row["milliseconds_per_clip"] for row in rows}
    assert all(spent > 0 for spent in found.values())
    names = list(found)
    after = names.index("pictures") + 1
    assert names[after : after + 3] == ["  H.264", "  to RGB", "  copy"]
    of_pictures = [found.pop(name) for name in names if name.startswith(" ")]
    assert found["pictures"] / 2 < sum(of_pictures) < found["pictures"]
    whole = found.pop("all")
    assert sum(found.values()) == pytest.approx(whole)
    assert "\ndecoder pyav, mode frame\n" in capsys.readouterr().out
