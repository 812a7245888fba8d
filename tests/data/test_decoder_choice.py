"""Decoders are timed on the run's own samples, whatever is wrong with some of them."""

import pytest

from avff.config import ClipConfig, ShardSource
from avff.data import decoder_choice
from avff.data.decoder_choice import time_decoders
from avff.data.shards import read_sample
from avff.errors import ShardError

CLIP = ClipConfig(num_frames=8, image_size=32, hop_samples=100)


def times_of(directory, decoders=("decord",)):
    return time_decoders([ShardSource(path=str(directory.path))], CLIP, decoders, timeout_seconds=30)


def test_each_decoder_is_timed(shard_directory):
    times = times_of(shard_directory)
    assert times.fastest == "decord" and 0 < times.milliseconds["decord"] < 1000


def test_the_fastest_is_the_one_with_the_least_time(shard_directory, monkeypatch):
    def seconds(self, sample, seed):
        read_sample(*sample)
        return {"decord": 0.002, "torchcodec": 0.001 if seed else 9.0}  # the first round does not count

    monkeypatch.setattr(decoder_choice._TimedRound, "_times", seconds)
    monkeypatch.setattr(decoder_choice, "AVView", lambda clip, decoder: None)  # torchcodec may not be here
    times = times_of(shard_directory, ("decord", "torchcodec"))
    assert times.fastest == "torchcodec" and times.milliseconds == {"decord": 2.0, "torchcodec": 1.0}


def test_samples_that_cannot_be_read_are_passed_over(tmp_path, make_sample, write_directory):
    good = make_sample("good")
    bad = make_sample("bad")._replace(members={**good.members, "face0.mp4": b"no video"})
    assert times_of(write_directory(tmp_path / "one", [bad, good])).fastest == "decord"
    nothing = times_of(write_directory(tmp_path / "none", [bad]))
    assert nothing.fastest is None and nothing.milliseconds == {}


def test_shards_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ShardError, match="no such shard directory"):
        time_decoders([ShardSource(path=str(tmp_path / "none"))], CLIP, ["decord"], timeout_seconds=30)
