"""Published weights into the networks of a config: every key accounted for, positions and sound made to fit."""

import re

import audio_visual_sources as sound
import published_video as picture
import pytest
import torch
from published_files import audiomae_weights, marlin_weights

from avff.errors import CheckpointError
from avff.models import build_model
from avff.models.adapt import Adapted, adapt_conversion, merge, only_modality
from avff.models.adapt_stages import adapt_weights
from avff.models.importers.audiomae import AUDIOMAE
from avff.models.importers.cav_mae import CAV_MAE
from avff.models.importers.marlin import MARLIN
from avff.models.importers.source import convert
from avff.models.patches import patchify_audio
from avff.models.weights import load_into

TINY, TINY_DECODER = picture.TINY, picture.TINY_DECODER


@pytest.fixture(scope="module")
def marlin():
    return marlin_weights(TINY, TINY_DECODER)


@pytest.fixture(scope="module")
def audiomae():
    return audiomae_weights(TINY)


@pytest.fixture
def target(odd_config):
    """12 frames of 48 px and 384 x 128 log-mel: video tokens 6x3x3, audio tokens 24x8."""

    def make(stage: str = "pretrain", **model):
        return odd_config(stage, clip={"num_mel_bins": 128}, model={"video_layer_norm_eps": 1e-5, **model})

    return make


def adapted(source, weights, config, only=None):
    conversion = convert(source, weights, source.name, config)
    if only:
        conversion = only_modality(conversion, only, source.name, weights)
    return Adapted(source.name, *adapt_conversion(conversion, source, config, file_keys=weights))


def check_accounted(tensors, ledger, config, weights):
    """Each key of the target has one fate, each key of the source went somewhere."""
    ours = build_model(config).state_dict()
    fates = [*ledger.mapped, *ledger.interpolated, *ledger.folded, *ledger.filled, *ledger.new]
    assert sorted(fates) == sorted(ours)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in ours.items() if name not in ledger.new
    }
    used = {word for text in ledger.made_of.values() for word in re.split(r"[, \[]+", text)}
    assert set(weights) == set(ledger.dropped) | (used & set(weights))
    reasons = (ledger.interpolated, ledger.folded, ledger.filled, ledger.dropped, ledger.new)
    assert all(why for kind in reasons for why in kind.values())


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_every_key_of_a_published_file_is_accounted_for(marlin, target, stage) -> None:
    config = target(stage)
    _, tensors, ledger = adapted(MARLIN, marlin, config)
    check_accounted(tensors, ledger, config, marlin)
    tables = {"video_encoder.position_table": "[1, 1568, 96] -> [1, 54, 96]"}
    if stage == "pretrain":
        tables["video_decoder.position_table"] = "[1, 1568, 64] -> [1, 54, 64]"
    assert ledger.interpolated == tables
    assert list(ledger.folded) == ["video_encoder.patch_embed.weight", "video_encoder.patch_embed.bias"]
    assert "audio_encoder.patch_embed.weight" in ledger.new
    assert set(ledger.dropped) >= {"decoder.mask_token", "discriminator.layers.0.linear.weight"}


def test_a_modality_of_a_file_of_both(target) -> None:
    config = target(video_layer_norm_eps=1e-6, audio_layer_norm_eps=1e-5)
    weights = sound.seeded(sound.cav_mae_layout(96, own=3), seed=3)
    _, tensors, ledger = adapted(CAV_MAE, weights, config, only="audio")
    check_accounted(tensors, ledger, config, weights)
    assert {name.split(".")[0] for name in tensors} == {"audio_encoder"}
    assert ledger.dropped["blocks_v.0.attn.qkv.weight"] == "only audio is asked for"
    assert "blocks_u.0.attn.qkv.weight" not in ledger.dropped, "both encoders are made of it"
    assert ledger.new["video_encoder.patch_embed.bias"] == "only audio is asked for of this file"
    with pytest.raises(
        CheckpointError, match="marlin: holds no audio encoder: the source is a model of pictures alone"
    ):
        adapted(MARLIN, marlin_weights(TINY), target(), only="audio")


@torch.no_grad()
def test_the_encoder_hears_our_sound_as_the_source_heard_its_own(audiomae, target) -> None:
    """Its log-mel statistics are folded into the patch embedding."""
    config = target()
    _, tensors, ledger = adapted(AUDIOMAE, audiomae, config)
    check_accounted(tensors, ledger, config, audiomae)
    assert set(ledger.folded.values()) == {"log-mel mean -4.26774 and deviation 9.13799 -> -5.081 and 4.4849"}
    model = build_model(config).eval()
    load_into(model, tensors, "adapted", ledger.new)
    model.audio_encoder.stack.norm = torch.nn.Identity()
    log_mel = -5 + 3 * torch.randn(2, 384, 128, generator=torch.Generator().manual_seed(4))
    heard = patchify_audio((log_mel - config.clip.mel_mean) / config.clip.mel_std, config.model)
    ours = model.audio_encoder(heard, torch.zeros(2, dtype=torch.int64)).flatten(1, 2)
    theirs = sound.audiomae_tokens(audiomae, (log_mel + 4.2677393) / (2 * 4.5689974), class_token=False)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_two_files_make_one_model(marlin, audiomae, target) -> None:
    config = target()
    parts = [adapted(MARLIN, marlin, config), adapted(AUDIOMAE, audiomae, config)]
    tensors, ledger = merge(parts)
    weights = {f"marlin: {name}": t for name, t in marlin.items()} | {f"audiomae: {n}": t for n, t in audiomae.items()}
    fates = [*ledger.mapped, *ledger.interpolated, *ledger.folded, *ledger.filled, *ledger.new]
    assert sorted(fates) == sorted(build_model(config).state_dict())
    assert {name.split(".")[0] for name in ledger.new} == {
        "a2v",
        "v2a",
        "temperature",
        "audio_decoder",
        "video_decoder",
    }
    assert [name for name in ledger.new if name.startswith("video_decoder")] == [
        "video_decoder.head.weight",
        "video_decoder.head.bias",
    ]
    assert ledger.new["a2v.norm.bias"] == "the source is a model of pictures alone; a model of sound alone"
    assert {"marlin: decoder.mask_token", "audiomae: mask_token"} <= set(ledger.dropped) <= set(weights)
    assert ledger.made_of["audio_encoder.stack.norm.bias"] == "audiomae: norm.bias"
    model = build_model(config)
    load_into(model, tensors, "merged", ledger.new)


def test_files_that_fill_the_same_key_are_refused(marlin, odd_config, target) -> None:
    config = target()
    own = Adapted("runs/stage1", *adapt_weights(build_model(config).state_dict(), config, config))
    with pytest.raises(CheckpointError) as caught:
        merge([own, adapted(MARLIN, marlin, config)])
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "runs/stage1 and marlin both fill video_encoder 54, video_decoder 29, such as video_encoder."
    )
    assert second.startswith("take one modality of each: --from video=runs/stage1 --from audio=marlin")


def test_what_does_not_fit_is_refused_with_the_overrides_that_would(marlin, target) -> None:
    with pytest.raises(CheckpointError) as caught:
        adapted(MARLIN, marlin, target(size="small", decoder_size="tiny", video_layer_norm_eps=1e-6))
    assert str(caught.value).splitlines() == [
        "marlin: its video encoder is 96 wide and 4 blocks deep, model.size=small is 384 x 12; add model.size=tiny "
        "after --to CONFIG, or to the config",
        "marlin: it was trained with a LayerNorm epsilon of 1e-5, model.video_layer_norm_eps is 1e-6; add "
        "model.video_layer_norm_eps=1e-5 after --to CONFIG, or to the config",
    ]
    with pytest.raises(CheckpointError, match=r"its video patches are 2 x 16 x 16, those of .* 2 x 8 x 8"):
        adapted(MARLIN, marlin, target(patch_size=8))


def test_a_decoder_of_another_size_starts_anew(odd_config) -> None:
    source, config = odd_config(), odd_config(model={"decoder_size": "small"})
    tensors, ledger = adapt_weights(build_model(source).state_dict(), source, config, only="video")
    why = "it is 64 wide and 2 blocks deep, model.decoder_size small is 192 x 4"
    assert ledger.new["video_decoder.embed.weight"] == ledger.dropped["video_decoder.embed.weight"] == why
    assert {name.split(".")[0] for name in tensors} == {"video_encoder"}


def test_a_key_that_nobody_accounts_for_is_an_error(marlin, target) -> None:
    with pytest.raises(CheckpointError, match=r"unexpected key encoder\.norm2\.bias \(nearest: encoder\.norm\.bias"):
        adapted(MARLIN, {**marlin, "encoder.norm2.bias": torch.zeros(96)}, target())
    config = target()
    conversion = convert(MARLIN, marlin, "marlin", config)
    del conversion.left_out["v2a."]
    conversion.tensors["video_encoder.stack.nrm.bias"] = conversion.tensors.pop("video_encoder.stack.norm.bias")
    with pytest.raises(CheckpointError) as caught:
        adapt_conversion(conversion, MARLIN, config, where="marlin.pt")
    lines = str(caught.value).splitlines()
    assert "marlin.pt: missing key video_encoder.stack.norm.bias [96]" in lines
    assert any(line.startswith("marlin.pt: missing key v2a.") for line in lines)
    assert any(
        "unexpected key video_encoder.stack.nrm.bias (nearest: video_encoder.stack.norm.bias" in s for s in lines
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_by_name(marlin, target, value) -> None:
    spoilt = {name: tensor.clone() for name, tensor in marlin.items()}
    for name in ("encoder.blocks.0.norm1.bias", "encoder.blocks.1.norm1.bias", "encoder.norm.weight"):
        spoilt[name][3] = value
    with pytest.raises(
        CheckpointError, match=r"NaN or infinite .* in encoder\.blocks\.0-1\.norm1\.bias, encoder\.norm"
    ):
        adapted(MARLIN, spoilt, target())
    config = target()
    own = build_model(config).state_dict()
    own["a2v.norm.bias"][0] = value
    with pytest.raises(CheckpointError, match=r"runs/one: NaN or infinite numbers in a2v\.norm\.bias"):
        adapt_weights(own, config, config, where="runs/one")


def test_asking_for_one_modality_excuses_no_key_of_it(target) -> None:
    config = target(video_layer_norm_eps=1e-6, audio_layer_norm_eps=1e-5)
    weights = sound.seeded(sound.cav_mae_layout(96, own=3), seed=3)
    conversion = convert(CAV_MAE, weights, "cav_mae", config)
    del conversion.tensors["audio_encoder.stack.norm.bias"]
    only = only_modality(conversion, "audio", "cav_mae", weights)
    with pytest.raises(CheckpointError) as caught:
        adapt_conversion(only, CAV_MAE, config, file_keys=weights)
    assert str(caught.value) == "cav_mae: missing key audio_encoder.stack.norm.bias [96]"


def test_a_ledger_of_two_files_holds_no_folders(marlin, audiomae, target) -> None:
    config = target()
    parts = [adapted(MARLIN, marlin, config), adapted(AUDIOMAE, audiomae, config)]
    folders = ("/home/me/m.pt", "/home/me/a.pth")
    merged = merge([part._replace(where=where) for part, where in zip(parts, folders, strict=True)])[1]
    assert "/home" not in str(merged.to_dict())
    assert merged.made_of["audio_encoder.stack.norm.bias"] == "a.pth: norm.bias"
