"""Which files are built, and what is known about each."""

import re

import pytest

from avff.building.sources import read_sources, single_source
from avff.errors import ConfigError
from avff.schema import KEY_PATTERN, FakeSegments


def write_csv(folder, text: str):
    path = folder / "list.csv"
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mp4", "sub/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_folder_is_searched_and_labels_come_from_the_call(media_folder):
    sources = read_sources(media_folder, dataset="tiny", is_fake=0, split="train")
    assert len(sources) == 9
    assert [s.name for s in sources] == sorted(s.name for s in sources)
    assert {(s.dataset, s.split, s.is_fake, s.video_is_fake, s.audio_is_fake) for s in sources} == {
        ("tiny", "train", 0, 0, 0)
    }


def test_open_avff_header_is_enough_and_nothing_is_guessed(folder):
    sources = read_sources(write_csv(folder, "video_name,target\na.mp4,1\nb.mp4,0\nsub/a.mp4,\n"))
    assert [(s.is_fake, s.video_is_fake, s.audio_is_fake) for s in sources] == [
        (1, None, None),
        (0, 0, 0),
        (None, None, None),
    ]


def test_metadata_columns(folder):
    header = "source_path,category,group_ids,methods,split,dataset,fake_segments_seconds,camera\n"
    row = 'a.mp4,RVFA,p1; p2,wav2lip,test,own,"{""audio"": [[1, 2.5]]}",phone\n'
    (source,) = read_sources(write_csv(folder, header + row), extra_columns=("camera",))
    assert (source.is_fake, source.video_is_fake, source.audio_is_fake) == (1, 0, 1)
    assert (source.group_ids, source.methods, source.split, source.dataset) == (
        ("p1", "p2"),
        ("wav2lip",),
        "test",
        "own",
    )
    assert source.fake_segments_seconds == FakeSegments(audio=[[1.0, 2.5]])
    assert source.extra == {"camera": "phone"}


def test_all_problems_of_a_table_come_in_one_error(folder):
    text = "video_name,target,split\na.mp4,2,train\ngone.mp4,0,train\nb.mp4,0,dev\nb.mp4,0,val\n"
    with pytest.raises(ConfigError) as caught:
        read_sources(write_csv(folder, text))
    message = str(caught.value)
    for expected in (
        r"list\.csv: 4 problems",
        r"line 2: target is '2'; write 0 \(real\), 1 \(fake\) or nothing",
        r"line 3: no file .*gone\.mp4",
        r"line 4: split is 'dev'; write one of train, val, test",
        r"line 5: 'b\.mp4' is also in line 4",
    ):
        assert re.search(expected, message), (expected, message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("video_name,is_fkae", "unknown column 'is_fkae'; did you mean is_fake"),
        ("video_name,camera", "to keep it as it is, add --extra-columns camera"),
        ("target", "no column video_name"),
        ("video_name,target,is_fake", "columns target and is_fake say the same"),
    ],
)
def test_wrong_header_says_what_to_write(folder, header, message):
    with pytest.raises(ConfigError, match=message):
        read_sources(write_csv(folder, header + "\n"))


def test_contradicting_labels_are_named(folder):
    with pytest.raises(ConfigError, match="line 2: is_fake=0 contradicts video_is_fake=1"):
        read_sources(write_csv(folder, "video_name,is_fake,video_is_fake\na.mp4,0,1\n"))
    with pytest.raises(ConfigError, match="line 2: category RVFA contradicts audio_is_fake=0"):
        read_sources(write_csv(folder, "video_name,category,audio_is_fake\na.mp4,RVFA,0\n"))


def test_keys_are_valid_and_unique_whatever_the_names(tmp_path):
    names = [
        "v1.5_a.mp4",
        "v1_5_a.mp4",
        "v1/5_a.mov",
        "été.mp4",
        "汉字.mp4",
        "_x.mp4",
        "long" * 40 + ".mp4",
        "ok-1.mp4",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    keys = {source.name: source.source_key for source in read_sources(tmp_path)}
    assert len(set(keys.values())) == len(names)
    assert all(KEY_PATTERN.fullmatch(f"{key}_0000") for key in keys.values())
    assert keys["ok-1.mp4"] == "ok_1"
    assert keys["v1_5_a.mp4"].startswith("v1_5_a-")


def test_single_file_has_the_key_of_its_own_build(folder):
    assert single_source(folder / "a.mp4").source_key == "a"


def test_nothing_to_build(tmp_path):
    with pytest.raises(ConfigError, match="no video in it; known endings are"):
        read_sources(tmp_path)
    with pytest.raises(ConfigError, match="no such folder or file"):
        read_sources(tmp_path / "gone")
