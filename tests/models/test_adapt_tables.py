"""Position tables that cannot be resampled stay so in the files made of them, until a run has trained them."""

from pathlib import Path

import published_video as picture
import pytest
import torch
from published_files import save_audiomae

from avff.errors import CheckpointError
from avff.models import build_model
from avff.models.adapt_files import adapt_files, open_weights
from avff.models.importers.audiomae import WRONG_GRID
from avff.models.weights import make_sidecar, parent_of, save_weights

TABLE = "audio_encoder.position_table"
LONGER = {"num_mel_bins": 128, "hop_samples": 50}


@pytest.fixture
def converted(tmp_path: Path, odd_config) -> Path:
    """AudioMAE made fit for 384 x 128 log-mel, 192 of its 512 positions."""
    config, path = odd_config(clip={"num_mel_bins": 128}), tmp_path / "start.safetensors"
    tensors, ledger = adapt_files([(open_weights(save_audiomae(tmp_path / "a.pth", picture.TINY)), None)], config)
    save_weights(path, tensors, make_sidecar("start", config, new=list(ledger.new), ledger=ledger.to_dict()))
    return path


def test_a_converted_file_can_be_cut_again(converted, odd_config) -> None:
    shorter = odd_config(clip={"num_mel_bins": 128, "hop_samples": 200})
    file = open_weights(converted)
    tensors, ledger = adapt_files([(file, "audio")], shorter)
    assert torch.equal(tensors[TABLE], file.tensors[TABLE][:, :96])
    assert ledger.fixed_tables == {TABLE: WRONG_GRID} and TABLE not in ledger.interpolated
    assert "the first 96 of its 192 positions are kept" in ledger.notes


@pytest.mark.parametrize("clip", [LONGER, {"num_mel_bins": 32}], ids=["more tokens", "fewer mel bins"])
def test_a_converted_file_is_never_interpolated(converted, odd_config, clip) -> None:
    with pytest.raises(CheckpointError, match=f"{TABLE} can be cut, not interpolated: {WRONG_GRID}"):
        adapt_files([(open_weights(converted), None)], odd_config(clip=clip))


@pytest.mark.parametrize("encoders", ["train", "freeze"])
def test_a_run_frees_the_table_unless_it_was_frozen(tmp_path, converted, odd_config, encoders) -> None:
    config = odd_config("finetune", clip={"num_mel_bins": 128}, finetune={"encoders": encoders})
    trained = tmp_path / "trained.safetensors"
    save_weights(trained, build_model(config).state_dict(), make_sidecar("run", config, parents=[parent_of(converted)]))
    target = odd_config("finetune", clip=LONGER)
    if encoders == "freeze":
        with pytest.raises(CheckpointError, match="can be cut, not interpolated"):
            adapt_files([(open_weights(trained), None)], target)
        return
    _, ledger = adapt_files([(open_weights(trained), None)], target)
    assert TABLE in ledger.interpolated and not ledger.fixed_tables
    assert any(note.startswith(f"{TABLE} could not be resampled before it was trained") for note in ledger.notes)
