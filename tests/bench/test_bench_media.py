"""tools/bench.py media: every setting is encoded and decoded, and the figures fit each other."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench

from avff.bench.media import candidates
from avff.build_config import PROFILES


@pytest.mark.slow
def test_media_writes_a_row_per_setting_and_decoder(tmp_path):
    arguments = ["media", "--folder", str(tmp_path), "--videos", "1", "--rounds", "1", "--decoders", "decord"]
    assert bench.main([*arguments, "--profiles", "pretrain"]) == 0
    report = json.loads((tmp_path / "media.json").read_text())
    rows = {row["setting"]: row for row in report["rows"]}
    assert list(rows) == [f"pretrain {candidate.change}".strip() for candidate in candidates("pretrain")]
    own, coarse = rows["pretrain"], rows["pretrain crf=23"]
    assert own["to_profile"] == 1 and all(row["milliseconds"] > 0 for row in rows.values())
    assert coarse["kilobytes_per_second"] < own["kilobytes_per_second"] and coarse["psnr_db"] < own["psnr_db"]
    assert 30 < own["psnr_db"] < 60 and len(report["videos"]) == 1


def test_neighbours_differ_in_one_value():
    for name, profile in PROFILES.items():
        own, *others = candidates(name)
        assert own.video == profile
        for other in others:
            field, _, value = other.change.partition("=")
            assert str(getattr(other.video, field)) == value != str(getattr(profile, field))


def test_a_folder_without_videos_is_an_error(tmp_path, capsys):
    assert bench.main(["media", "--input", str(tmp_path), "--folder", str(tmp_path)]) == 2
    assert "holds no video of 3.2 s or more" in capsys.readouterr().err
