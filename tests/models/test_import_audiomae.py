"""AudioMAE's tokens come out of our audio encoder, and its position table is copied and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from audio_visual_sources import (
    AUDIOMAE_EPS,
    audiomae_finetuned_layout,
    audiomae_layout,
    audiomae_tokens,
    norm,
    patches_2d,
    seeded,
)
from converting import TOLERANCE, audio_tokens, change_by_click, click, convert, cosine, touched
from einops import rearrange

from avff.errors import CheckpointError
from avff.models.adapt import adapt_conversion
from avff.models.importers.audiomae import AUDIOMAE, NO_DECODER, WITHOUT_CLASS_TOKEN

TINY = {"width": 96, "depth": 4}
LONGEST = {"num_frames": 16, "hop_samples": 50, "num_mel_bins": 128, "num_slices": 8}
"""1024 x 128 log-mel: the 512 tokens that AudioMAE was trained on."""


@pytest.fixture
def config(tiny_config):
    def make(**clip):
        return tiny_config(clip={**LONGEST, **clip}, model={"audio_layer_norm_eps": 1e-6})

    return make


@pytest.fixture(scope="module")
def weights():
    return seeded(audiomae_layout(**TINY), seed=1)


def mel_of(config, seed: int = 5) -> torch.Tensor:
    """Two clips of log-mel, normalised."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, config.clip.num_mel_frames, config.clip.num_mel_bins, generator=rng)


def test_tokens_are_those_of_the_pretrained_encoder(config, weights) -> None:
    mel = mel_of(config())
    expected = norm(weights, "norm", audiomae_tokens(weights, mel, class_token=False), AUDIOMAE_EPS)
    ours = audio_tokens(convert(AUDIOMAE, weights, config()).tensors, config(), mel)
    assert (ours - expected).abs().max() < TOLERANCE and expected.std() > 0.5


def test_tokens_of_a_finetuned_file_are_equal_before_its_pooled_norm(config) -> None:
    weights, mel = seeded(audiomae_finetuned_layout(**TINY), seed=2), mel_of(config())
    conversion = convert(AUDIOMAE, weights, config())
    expected = F.layer_norm(audiomae_tokens(weights, mel, class_token=False), (96,), eps=AUDIOMAE_EPS)
    assert (audio_tokens(conversion.tensors, config(), mel) - expected).abs().max() < TOLERANCE
    assert "mean over all tokens" in conversion.filled["audio_encoder.stack.norm.weight"]
    assert {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"} <= set(conversion.dropped)
    assert NO_DECODER in conversion.notes


def test_a_decoder_leaves_nothing_to_be_assumed(config, weights) -> None:
    assert NO_DECODER not in convert(AUDIOMAE, weights, config()).notes


def test_the_class_token_is_dropped_and_its_weight_is_told(config, weights) -> None:
    mel = mel_of(config())
    with_it, without = (audiomae_tokens(weights, mel, class_token=on) for on in (True, False))
    agreement = cosine(with_it, without)
    assert 0.9999 <= agreement < 1 and not torch.equal(with_it, without)
    conversion = convert(AUDIOMAE, weights, config())
    assert "class token" in conversion.dropped["cls_token"]
    assert WITHOUT_CLASS_TOKEN in conversion.notes and "0.9999" in WITHOUT_CLASS_TOKEN


def test_normalisation_is_twice_the_deviation_and_folds_without_loss(config, weights) -> None:
    """Raw log-mel through AudioMAE's own normalisation equals ours through the target's."""
    target = config(mel_mean=-5.081, mel_std=4.4849)
    raw = 4 * mel_of(target) - 5
    conversion = convert(AUDIOMAE, weights, target)
    tokens = audiomae_tokens(weights, (raw + 4.2677393) / (2 * 4.5689974), class_token=False)
    expected = norm(weights, "norm", tokens, AUDIOMAE_EPS)
    tensors, _ = adapt_conversion(conversion, AUDIOMAE, target)
    ours = audio_tokens(tensors, target, (raw + 5.081) / 4.4849)
    assert (ours - expected).abs().max() < TOLERANCE
    unfolded = audio_tokens(conversion.tensors, target, (raw + 5.081) / 4.4849)
    assert (unfolded - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("clip", "grid"),
    [
        ({"hop_samples": 100}, (32, 8)),
        ({"num_frames": 24, "hop_samples": 100, "num_slices": 4}, (48, 8)),
    ],
    ids=["256 tokens", "384 tokens"],
)
def test_a_shorter_clip_takes_the_first_rows_as_they_are(config, weights, clip, grid) -> None:
    target = config(**clip, mel_mean=-4.2677393, mel_std=2 * 4.5689974)
    tensors, ledger = adapt_conversion(convert(AUDIOMAE, weights, target), AUDIOMAE, target)
    num_tokens, mel = grid[0] * grid[1], mel_of(target)
    assert torch.equal(tensors["audio_encoder.position_table"], weights["pos_embed"][:, 1 : num_tokens + 1])
    assert f"the first {num_tokens} of its 512 positions are kept" in ledger.notes
    expected = norm(weights, "norm", audiomae_tokens(weights, mel, class_token=False), AUDIOMAE_EPS)
    assert (audio_tokens(tensors, target, mel) - expected).abs().max() < TOLERANCE
    assert not ledger.interpolated


def test_what_the_table_cannot_serve_is_refused(config, weights) -> None:
    for clip, problem in (
        ({"hop_samples": 25}, r"512 positions, the target 1024 tokens; shorten the clip, or raise clip\.hop_samples"),
        ({"num_mel_bins": 64}, r"8 tokens per time step, the target 4; give clip\.num_mel_bins=128"),
    ):
        target = config(**clip)
        with pytest.raises(CheckpointError, match=f"{problem}.* made its positions for a grid of 8 x 64"):
            adapt_conversion(convert(AUDIOMAE, weights, target), AUDIOMAE, target)
    overlapping = {**weights, "pos_embed": torch.zeros(1, 1213, 96)}
    with pytest.raises(CheckpointError, match=r"1212 positions .* overlapping patches cannot be converted"):
        convert(AUDIOMAE, overlapping, config())


@pytest.mark.parametrize("mel_frame", [0, 100, 1023])
def test_a_click_changes_its_own_time_step_as_in_the_source(config, weights, mel_frame) -> None:
    change_TFD = change_by_click(convert(AUDIOMAE, weights, config()).tensors, config(), mel_frame)
    click_BMF = click(config(), mel_frame)
    loud, silent = (patches_2d(weights, "patch_embed.proj", mel.unsqueeze(1)) for mel in (click_BMF, 0 * click_BMF))
    assert touched(change_TFD) == [mel_frame // 16]
    assert (change_TFD - rearrange(loud - silent, "1 (t f) d -> t f d", f=8)).abs().max() < TOLERANCE


def test_a_stretched_time_scale_is_noted(config, weights) -> None:
    assert any("10 ms apart, the target's 3.125 ms" in note for note in convert(AUDIOMAE, weights, config()).notes)
    native = config(frames_per_second=1.5625, hop_samples=160)
    assert not any("ms apart" in note for note in convert(AUDIOMAE, weights, native).notes)
