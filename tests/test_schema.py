"""Sample metadata: validated on write and on read, every refusal naming the field."""

import json
import re

import pytest

from avff.errors import ShardError
from avff.schema import (
    AudioInfo,
    EncoderInfo,
    FakeSegments,
    SampleMetadata,
    Track,
    VideoInfo,
    complete_labels,
    from_json,
    to_json,
)


def metadata(**changes) -> SampleMetadata:
    values = dict(
        key="clip_0",
        source_key="clip",
        dataset="demo",
        split="train",
        source_path="a/clip.mp4",
        source_sha256="00",
        segment=0,
        group_ids=["p1", "p2"],
        is_fake=1,
        video_is_fake=0,
        audio_is_fake=1,
        category="RVFA",
        methods=["swap"],
        fake_segments_seconds=FakeSegments(audio=[[0.5, 1.5]]),
        video=VideoInfo(
            width=64, height=48, fps_source=29.97, fps=5.0, num_frames=16, start_seconds=0.0, duration_seconds=3.2
        ),
        audio=AudioInfo(has_audio=True, num_samples=51200, offset_seconds=-0.02),
        tracks=[track()],
        encoder=EncoderInfo(profile="pretrain", codec="h264", parameters={"crf": 18, "tune": "fastdecode"}),
        status=["OK"],
        extra={"any": [1, {"thing": None}]},
    )
    return SampleMetadata(**{**values, **changes})


def track(**changes) -> Track:
    values = dict(
        id=0,
        identity=0,
        first_frame=1,
        num_frames=2,
        boxes=[[0.0, 0.0, 9.5, 9.5]] * 2,
        scores=[0.99, 0.98],
        detected=[True, False],
        area_ratio=0.1,
        crop_centres=[[4.0, 4.0]] * 2,
        crop_half_sides=[6.0, 6.0],
    )
    return Track(**{**values, **changes})


def test_json_round_trip_is_the_identity():
    assert from_json(to_json(metadata()), "a.tar") == metadata()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "v1.5_a"}, "key does not match"),
        ({"key": "a" * 81}, "key does not match"),
        ({"status": []}, "has to be ['OK'] or a list of reasons"),
        ({"status": ["OK", "NO_AUDIO"]}, "has to be ['OK'] or a list of reasons"),
        ({"schema_version": 2}, "this avff reads 1"),
        ({"category": "FVFA"}, "contradicts video_is_fake=0"),
        ({"is_fake": 0, "category": None}, "is_fake is 0 but a modality is labelled fake"),
        ({"tracks": [track(), track()]}, "track ids [0, 0] are not unique"),
        ({"tracks": [track(num_frames=3)]}, "boxes has 2 entries for 3 frames"),
        ({"tracks": [track(first_frame=15)]}, "covers frames [15, 17) of 16"),
    ],
)
def test_impossible_metadata_is_refused_when_made(changes, message):
    with pytest.raises(ShardError, match=re.escape(message)):
        metadata(**changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.pop("key"), "missing field key"),
        (lambda v: v.update(colour=3), "unknown field colour"),
        (lambda v: v["video"].update(fps="5"), "video.fps: expected float, found '5'"),
        (lambda v: v.update(is_fake=2), "is_fake: 2 "),
        (lambda v: v.update(is_fake=True), "is_fake: True"),
        (lambda v: v["tracks"][0].pop("boxes"), "missing field tracks.boxes"),
        (lambda v: v.update(status=["ok"]), "status: 'ok' is not one of"),
    ],
)
def test_bad_json_is_refused_naming_shard_and_field(edit, message):
    values = json.loads(to_json(metadata()))
    edit(values)
    with pytest.raises(ShardError, match=re.escape(message)) as caught:
        from_json(json.dumps(values), "shard-000000.tar: clip_0.json")
    assert "shard-000000.tar: clip_0.json" in str(caught.value)


def test_text_that_is_not_json_is_refused():
    with pytest.raises(ShardError, match="not valid JSON"):
        from_json(b"{", "a.tar")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0, None, None), (0, 0, 0, "RVRA")),
        ((1, None, None), (1, None, None, None)),
        ((None, 1, None), (1, 1, None, None)),
        ((None, 0, None), (None, 0, None, None)),
        ((None, 0, 0), (0, 0, 0, "RVRA")),
        ((None, 0, 1), (1, 0, 1, "RVFA")),
        ((1, 1, 0), (1, 1, 0, "FVRA")),
        ((1, 1, 1), (1, 1, 1, "FVFA")),
        ((None, None, None), (None, None, None, None)),
    ],
)
def test_labels_are_completed_and_never_guessed(given, expected):
    assert complete_labels(*given) == expected


@pytest.mark.parametrize("given", [(0, 1, None), (0, None, 1), (1, 0, 0)])
def test_contradicting_labels_are_refused(given):
    with pytest.raises(ShardError, match="contradicts"):
        complete_labels(*given)
