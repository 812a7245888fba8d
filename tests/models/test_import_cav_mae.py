"""CAV-MAE's two towers come out of our encoders: sound in another order of axes, a picture as a still clip."""

import pytest
import safetensors.torch
import torch
from audio_visual_sources import cav_mae_finetuned_layout, cav_mae_layout, cav_mae_tokens, patches_2d, seeded
from converting import TOLERANCE, audio_tokens, change_by_click, click, convert, touched, video_tokens
from einops import rearrange

from avff.errors import CheckpointError
from avff.models.adapt import adapt_conversion
from avff.models.importers.cav_mae import CAV_MAE, FINETUNED

TINY = {"width": 96, "own": 3, "num_audio": 16 * 8, "num_video": 3 * 3}
CLIP = {"num_frames": 16, "image_size": 48, "hop_samples": 200, "num_mel_bins": 128, "num_slices": 8}
"""Audio tokens 16 x 8, video tokens 8 x 3 x 3."""

LAYOUTS = {"pretrained": cav_mae_layout, "finetuned": cav_mae_finetuned_layout}


@pytest.fixture
def config(tiny_config):
    def make(**clip):
        model = {"audio_layer_norm_eps": 1e-5, "video_layer_norm_eps": 1e-5}
        return tiny_config(clip={**CLIP, **clip}, model=model)

    return make


@pytest.fixture(scope="module")
def weights():
    return seeded(cav_mae_layout(**TINY), seed=3)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_audio_tokens_are_its_own_in_time_major_order(config, layout) -> None:
    weights, mel_BMF = (
        seeded(layout(**TINY), seed=4),
        torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(6)),
    )
    theirs = cav_mae_tokens(weights, "a", mel_BMF.transpose(1, 2).unsqueeze(1))
    expected = rearrange(theirs, "b (f t) d -> b (t f) d", f=8)
    ours = audio_tokens(convert(CAV_MAE, weights, config()).tensors, config(), mel_BMF)
    assert (ours - expected).abs().max() < TOLERANCE and (ours - theirs).abs().max() > 1


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_still_clip_has_the_tokens_of_its_picture_at_every_time(config, layout) -> None:
    weights = seeded(layout(**TINY), seed=4)
    picture_BCHW = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(7))
    expected = cav_mae_tokens(weights, "v", picture_BCHW).repeat(1, 8, 1)
    conversion = convert(CAV_MAE, weights, config())
    still_BTCHW = picture_BCHW.unsqueeze(1).expand(-1, 16, -1, -1, -1)
    assert (video_tokens(conversion.tensors, config(), still_BTCHW) - expected).abs().max() < TOLERANCE
    assert conversion.grids["video"] == (8, 3, 3)


def test_a_tubelet_is_embedded_as_the_mean_of_its_frames(config, weights) -> None:
    video_BTCHW = torch.randn(1, 16, 3, 48, 48, generator=torch.Generator().manual_seed(8))
    tensors = convert(CAV_MAE, weights, config()).tensors
    averaged = video_BTCHW.unflatten(1, (8, 2)).mean(dim=2).repeat_interleave(2, dim=1)
    moving, still = (video_tokens(tensors, config(), video) for video in (video_BTCHW, averaged))
    assert (moving - still).abs().max() < TOLERANCE


def test_a_shorter_clip_repeats_the_picture_less_often(config, weights) -> None:
    target = config(num_frames=8, num_slices=4)
    conversion = convert(CAV_MAE, weights, target)
    assert conversion.grids["video"] == (4, 3, 3)
    assert conversion.tensors["video_encoder.position_table"].shape == (1, 36, 96)


def test_another_audio_grid_is_interpolated(config, weights) -> None:
    """Its table was made for its own grid, unlike AudioMAE's."""
    conversion = convert(CAV_MAE, weights, config(hop_samples=100))
    assert conversion.grids["audio"] == (16, 8)
    tensors, _ = adapt_conversion(conversion, CAV_MAE, config(hop_samples=100))
    table_TFD = tensors["audio_encoder.position_table"].view(32, 8, 96)
    source_FTD = weights["pos_embed_a"].view(8, 16, 96)
    torch.testing.assert_close(
        table_TFD[1::2][:-1].mean(dim=0), (source_FTD[:, :-1] * 0.75 + source_FTD[:, 1:] * 0.25).mean(dim=1)
    )


@pytest.mark.parametrize("mel_frame", [0, 100, 255])
def test_a_click_changes_its_own_time_step_as_in_the_source(config, weights, mel_frame) -> None:
    change_TFD = change_by_click(convert(CAV_MAE, weights, config()).tensors, config(), mel_frame)
    click_BMF = click(config(), mel_frame)
    turned_BCFM = click_BMF.transpose(1, 2).unsqueeze(1)
    loud, silent = (patches_2d(weights, "patch_embed_a.proj", mel) for mel in (turned_BCFM, 0 * turned_BCFM))
    assert touched(change_TFD) == [mel_frame // 16]
    assert (change_TFD - rearrange(loud - silent, "1 (f t) d -> t f d", f=8)).abs().max() < TOLERANCE


def test_shared_block_is_taken_twice_with_memory_of_its_own(config, weights, tmp_path) -> None:
    tensors = convert(CAV_MAE, weights, config()).tensors
    audio, video = (f"{m}_encoder.stack.blocks.3." for m in ("audio", "video"))
    assert torch.equal(tensors[f"{audio}attn.qkv.weight"], tensors[f"{video}attn.qkv.weight"])
    assert torch.equal(tensors[f"{audio}norm1.weight"], weights["blocks_u.0.norm1_a.weight"])
    assert torch.equal(tensors[f"{video}norm2.bias"], weights["blocks_u.0.norm2_v.bias"])
    safetensors.torch.save_file(tensors, tmp_path / "both.safetensors")


def test_what_is_dropped_says_why(config, weights) -> None:
    dropped = convert(CAV_MAE, weights, config()).dropped
    assert "both modalities at once" in dropped["blocks_u.0.norm1.weight"] and "both modalities" in dropped["norm.bias"]
    assert "never used" in dropped["blocks_a.0.norm1_v.weight"] and "never used" in dropped["blocks_v.2.norm2_v.bias"]
    assert "decoder" in dropped["decoder_blocks.7.norm2_a.weight"] and "mask_token" in dropped


def test_a_finetuned_file_says_which_norms_it_trained(config) -> None:
    conversion = convert(CAV_MAE, seeded(cav_mae_finetuned_layout(**TINY, classes=309), seed=4), config())
    assert FINETUNED in conversion.notes and "sound events" in conversion.dropped["mlp_head.1.weight"]
    assert FINETUNED not in convert(CAV_MAE, seeded(cav_mae_layout(**TINY), seed=4), config()).notes


def test_positions_that_are_no_square_are_refused(config, weights) -> None:
    with pytest.raises(CheckpointError, match="pos_embed_v has 10 positions, not those of a square"):
        convert(CAV_MAE, {**weights, "pos_embed_v": torch.zeros(1, 10, 96)}, config())
