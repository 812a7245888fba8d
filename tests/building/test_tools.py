"""make_shards and inspect_shards as a user calls them."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import inspect_shards  # noqa: E402
import make_shards  # noqa: E402


def test_folder_to_shards_to_pictures(media_folder, tmp_path, capsys):
    shards = tmp_path / "shards"
    command = [
        "--input",
        str(media_folder),
        "--output",
        str(shards),
        "--mode",
        "frame",
        "--num-workers",
        "0",
        "--quiet",
    ]
    command += ["--is-fake", "0", "--dataset", "tiny", "--test-fraction", "0.4"]
    assert make_shards.main(command) == 0
    text = capsys.readouterr().out
    assert "8 samples of 8 sources" in text and "rejected: UNDECODABLE 1; see rejects.csv" in text
    assert make_shards.main(command) == 0
    assert "already built with these arguments" in capsys.readouterr().out

    keys = "a_clip_0_0000,mute_0000"
    assert inspect_shards.main([str(shards), "--keys", keys, "--output", str(tmp_path / "png")]) == 0
    text = capsys.readouterr().out
    assert "status: NO_AUDIO 1, OK 6, TOO_SHORT 1" in text and "RVRA" in text
    for key in keys.split(","):
        picture = Image.open(io.BytesIO((tmp_path / "png" / f"{key}.png").read_bytes()))
        assert picture.width > 1000


def test_shares_and_their_merge(media_folder, tmp_path, capsys):
    shards = tmp_path / "shards"
    command = ["--input", str(media_folder), "--output", str(shards), "--mode", "frame", "--num-workers", "0"]
    assert make_shards.main([*command, "--share", "1/2"]) == 0
    assert "share 1/2: 4 sources, 4 built now, 0 were there" in capsys.readouterr().out
    assert make_shards.main([*command, "--merge-shares", "2"]) == 2
    assert "5 of 9 sources are not built:\n  share 0/2 lacks 5, such as" in capsys.readouterr().err
    assert make_shards.main([*command, "--share", "0/2"]) == 0
    assert make_shards.main([*command, "--merge-shares", "2"]) == 0
    text = capsys.readouterr().out
    assert "8 samples of 8 sources" in text
    assert "UNDECODABLE            1  broken.mp4: cannot be decoded" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "boxes"], "mode boxes needs a box file: add --boxes FILE.csv"),
        (["--mode", "frame", "--set", "crop_facto=2"], "unknown key crop_facto; did you mean crop_factor"),
        (["--mode", "frame", "--val-fraction", "0.7", "--test-fraction", "0.7"], "have to be in"),
        (["--mode", "frame", "--split", "train", "--val-fraction", "0.1"], "name their splits already"),
        (["--share", "2/2"], "the shares of 8 are 0/8 to 7/8"),
        (["--mode", "frame", "--min-seconds", "20"], "min_seconds 20.0 has to be positive and at most segment_seconds"),
    ],
)
def test_impossible_calls_say_what_to_write_and_leave_nothing(media_folder, tmp_path, capsys, options, message):
    output = tmp_path / "shards"
    assert make_shards.main(["--input", str(media_folder), "--output", str(output), *options]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_unknown_key_is_named(media_folder, tmp_path, capsys):
    shards = tmp_path / "shards"
    make_shards.main(
        ["--input", str(media_folder / "a"), "--output", str(shards), "--mode", "frame", "--num-workers", "0"]
    )
    assert inspect_shards.main([str(shards), "--keys", "nobody_0000"]) == 2
    assert "holds no nobody_0000; its first key is clip_" in capsys.readouterr().err
