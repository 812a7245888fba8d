"""The decoder of a run: chosen among those that every rank has, stored, and required from then on."""

import sys
from typing import get_args

import pytest

from avff import distributed
from avff.config import DecoderName, load_config
from avff.data import decoders
from avff.engine import decoder
from avff.engine.decoder import settle_decoder
from avff.engine.run_state import open_run
from avff.errors import ConfigError


@pytest.fixture
def config(tiny_config, shard_directory):
    found = tiny_config(data={"decoder": "auto", "train": [{"path": str(shard_directory.path)}]})
    open_run(found)
    return found


@pytest.fixture
def no_torchcodec(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)


@pytest.mark.slow  # torchcodec takes seconds to import
@pytest.mark.usefixtures("torchcodec")
def test_the_measured_choice_is_logged_and_stored(config, caplog):
    caplog.set_level("INFO", logger="avff")
    settled = settle_decoder(config)
    assert settled.data.decoder in get_args(DecoderName)
    assert load_config(config.run_dir / "config.yaml") == settled
    assert f"video is decoded by {settled.data.decoder} (per clip and core: " in caplog.text
    assert all(f"{name} " in caplog.text for name in get_args(DecoderName))


@pytest.mark.usefixtures("no_torchcodec")
def test_without_torchcodec_the_others_are_timed(config, caplog):
    caplog.set_level("INFO", logger="avff")
    assert settle_decoder(config).data.decoder in ("decord", "pyav") and "torchcodec" not in caplog.text


def test_a_decoder_that_another_rank_lacks_is_not_chosen(config, monkeypatch):
    monkeypatch.setattr(decoder, "installed_decoders", lambda: ["decord", "torchcodec"])
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [own, ["decord"]])
    monkeypatch.delattr(decoder, "time_decoders")
    assert settle_decoder(config).data.decoder == "decord"


@pytest.mark.usefixtures("no_torchcodec")
def test_a_decoder_that_is_missing_later_is_one_error_with_the_way_out(tiny_config):
    with pytest.raises(
        ConfigError, match=r"data.decoder is torchcodec, which cannot be used here: .*; install .*data.decoder=pyav"
    ):
        settle_decoder(tiny_config(data={"decoder": "torchcodec"}))


def test_a_library_that_does_not_load_is_as_good_as_missing(monkeypatch):
    def fail(name):
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\n  1. FFmpeg is not installed")

    monkeypatch.setattr(decoders.importlib, "import_module", fail)
    assert decoders.installed_decoders() == []
    with pytest.raises(
        ConfigError, match=r"cannot be used here: Could not load libtorchcodec. Likely causes:; install"
    ):
        decoders.require_decoder("torchcodec")
