"""HAVIC's encoders come out of ours: frames in [0, 1], sound in mel bands, class tokens left behind."""

import pytest
import torch
from audio_visual_sources import (
    havic_audio_tokens,
    havic_finetuned_layout,
    havic_layout,
    havic_video_tokens,
    patches_2d,
    seeded,
)
from converting import TOLERANCE, audio_tokens, change_by_click, click, convert, cosine, touched, video_tokens
from einops import rearrange

from avff.config import IMAGENET_MEAN, IMAGENET_STD
from avff.errors import CheckpointError
from avff.models.adapt import adapt_conversion
from avff.models.importers.havic import HAVIC, WITHOUT_CLASS_TOKENS

TINY = {"width": 96, "depth": 4, "num_audio": 16 * 8, "num_video": 8 * 3 * 3}
CLIP = {"num_frames": 16, "image_size": 48, "hop_samples": 200, "num_mel_bins": 128, "num_slices": 8}
LAYOUTS = {"pretrained": havic_layout, "finetuned": havic_finetuned_layout}


@pytest.fixture
def config(tiny_config):
    return tiny_config(clip=CLIP, model={"audio_layer_norm_eps": 1e-5, "video_layer_norm_eps": 1e-5})


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS)
def weights(request):
    return seeded(request.param(**TINY), seed=9)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(11)


def test_audio_tokens_are_its_own_in_time_major_order(config, weights, rng) -> None:
    mel_BMF = torch.randn(2, 256, 128, generator=rng)
    theirs = havic_audio_tokens(weights, mel_BMF, class_tokens=False)
    expected = rearrange(theirs, "b (f t) d -> b (t f) d", f=8)
    ours = audio_tokens(convert(HAVIC, weights, config).tensors, config, mel_BMF)
    assert (ours - expected).abs().max() < TOLERANCE and (ours - theirs).abs().max() > 1


def test_raw_sound_through_its_normalisation_equals_ours_through_the_targets(config, weights, rng) -> None:
    raw_BMF = 3 * torch.randn(2, 256, 128, generator=rng) - 6
    theirs = havic_audio_tokens(weights, (raw_BMF + 6.9960) / 3.1205, class_tokens=False)
    tensors, ledger = adapt_conversion(convert(HAVIC, weights, config), HAVIC, config)
    ours = audio_tokens(tensors, config, (raw_BMF - config.clip.mel_mean) / config.clip.mel_std)
    assert (ours - rearrange(theirs, "b (f t) d -> b (t f) d", f=8)).abs().max() < TOLERANCE
    assert {"audio_encoder.patch_embed.weight", "video_encoder.patch_embed.weight"} <= set(ledger.folded)


def test_video_tokens_are_its_own_from_normalised_frames(config, weights, rng) -> None:
    video_BTCHW = torch.rand(2, 16, 3, 48, 48, generator=rng)
    expected = havic_video_tokens(weights, video_BTCHW.transpose(1, 2), class_tokens=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    conversion = convert(HAVIC, weights, config)
    ours = video_tokens(conversion.tensors, config, (video_BTCHW - mean) / std)
    assert (ours - expected).abs().max() < TOLERANCE
    assert (video_tokens(conversion.tensors, config, video_BTCHW) - expected).abs().max() > 0.1
    assert set(conversion.folded) == {f"video_encoder.patch_embed.{kind}" for kind in ("weight", "bias")}
    assert conversion.grids == {"audio": (16, 8), "video": (8, 3, 3)}


def test_class_tokens_are_dropped_and_their_weight_is_told(config, rng) -> None:
    """At its own 512 and 1568 tokens; with fewer, eight class tokens weigh more."""
    weights = seeded(havic_finetuned_layout(**TINY | {"num_audio": 512, "num_video": 1568}), seed=9)
    mel_BMF, video_BCTHW = torch.randn(1, 1024, 128, generator=rng), torch.rand(1, 3, 16, 224, 224, generator=rng)
    for tokens, clip in ((havic_audio_tokens, mel_BMF), (havic_video_tokens, video_BCTHW)):
        with_them, without = (tokens(weights, clip, class_tokens=on) for on in (True, False))
        assert 0.9999 <= cosine(with_them, without) < 1 and not torch.equal(with_them, without)
    conversion = convert(HAVIC, weights, config)
    assert WITHOUT_CLASS_TOKENS in conversion.notes and "0.9999" in WITHOUT_CLASS_TOKENS
    for modality in ("audio", "visual"):
        assert "segments" in conversion.dropped[f"{modality}_encoder.cls_tokens"]
        assert "segments" in conversion.dropped[f"{modality}_encoder.cls_pos_embed"]


def test_older_files_call_the_class_tokens_positions_otherwise(config) -> None:
    weights = seeded(havic_layout(**TINY, class_position="time_pos_embed"), seed=9)
    assert "audio_encoder.time_pos_embed" in convert(HAVIC, weights, config).dropped


@pytest.mark.parametrize("mel_frame", [0, 100, 255])
def test_a_click_changes_its_own_time_step_as_in_the_source(config, weights, mel_frame) -> None:
    change_TFD = change_by_click(convert(HAVIC, weights, config).tensors, config, mel_frame)
    click_BMF = click(config, mel_frame)
    turned_BCFM = click_BMF.transpose(1, 2).unsqueeze(1)
    embedding = "audio_encoder.patch_embed.proj"
    loud, silent = (patches_2d(weights, embedding, mel) for mel in (turned_BCFM, 0 * turned_BCFM))
    assert touched(change_TFD) == [mel_frame // 16]
    assert (change_TFD - rearrange(loud - silent, "1 (f t) d -> t f d", f=8)).abs().max() < TOLERANCE


def test_missing_biases_become_the_zero_bias_of_k(config, weights) -> None:
    tensors = convert(HAVIC, weights, config).tensors
    q, k, v = tensors["audio_encoder.stack.blocks.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(q, weights["audio_encoder.blocks.0.attn.q_bias"]) and not k.any()
    assert torch.equal(v, weights["audio_encoder.blocks.0.attn.v_bias"])


def test_what_mixes_mel_bands_with_moments_is_left_out(config, weights) -> None:
    conversion = convert(HAVIC, weights, config)
    assert "mel bands" in conversion.dropped["AudioVisualInteractionModule.norm_audio_out.weight"]
    assert "mel bands" in conversion.left_out["a2v."] and "mel bands" in conversion.left_out["v2a."]
    assert conversion.left_out["temperature."] == "a constant there, 0.07"


def test_a_table_that_does_not_fit_its_class_tokens_is_refused(config, weights) -> None:
    with pytest.raises(CheckpointError, match="has 73 positions, not 8 times a square"):
        convert(HAVIC, {**weights, "visual_encoder.pos_embedding.emb": torch.zeros(1, 73, 96)}, config)
