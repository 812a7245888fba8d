"""Stage to stage: every key accounted for, functions preserved where they can be, refusals that say why."""

import dataclasses

import pytest
import torch

from avff.errors import CheckpointError
from avff.models import build_model
from avff.models.adapt_stages import adapt_weights
from avff.models.lora import is_lora
from avff.models.patches import patchify_audio
from avff.models.weights import load_into


def state(config):
    return build_model(config).state_dict()


def test_same_config_copies_everything(odd_config) -> None:
    config = odd_config()
    tensors = state(config)
    adapted, ledger = adapt_weights(tensors, config, dataclasses.replace(config, name="stage2"))
    assert ledger.mapped == list(tensors) and all(adapted[name] is tensors[name] for name in tensors)
    assert not (ledger.interpolated or ledger.folded or ledger.dropped or ledger.new or ledger.notes)


def test_stage_2_to_3_keeps_what_the_classifier_shares(odd_config, inputs) -> None:
    source, target = odd_config(seed=1), odd_config("finetune", seed=2)
    model = build_model(source)
    adapted, ledger = adapt_weights(model.state_dict(), source, target)
    classifier = build_model(target)
    fresh = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    load_into(classifier, adapted, "adapted", ledger.new)
    _, mel, seeds = inputs(source)
    patches = patchify_audio(mel, source.model)
    tokens = classifier.audio_encoder(patches, seeds)
    torch.testing.assert_close(tokens, model.audio_encoder(patches, seeds))
    torch.testing.assert_close(classifier.a2v(tokens), model.a2v(tokens))
    assert {name.split(".")[0] for name in ledger.dropped} == {"video_decoder", "audio_decoder"}
    assert {name.split(".")[0] for name in ledger.new} == {
        "video_pool",
        "audio_pool",
        "video_head",
        "audio_head",
        "overall_head",
    }
    assert all(torch.equal(classifier.state_dict()[name], fresh[name]) for name in ledger.new)
    assert sorted([*ledger.mapped, *ledger.dropped]) == sorted(model.state_dict())
    assert sorted([*ledger.mapped, *ledger.new]) == sorted(fresh)


GEOMETRIES = {
    "longer": {"num_frames": 24, "hop_samples": 200},
    "finer": {"image_size": 96},
    "more mel frames": {"hop_samples": 50},
    "more mel bins": {"num_mel_bins": 64},
    "fewer slices": {"num_slices": 2},
}


@pytest.mark.parametrize("change", GEOMETRIES.values(), ids=GEOMETRIES)
def test_another_clip_geometry(odd_config, inputs, change) -> None:
    source, target = odd_config(), odd_config(clip=change)
    tensors = state(source)
    adapted, ledger = adapt_weights(tensors, source, target)
    model = build_model(target)
    load_into(model, adapted, "adapted")
    assert model(*inputs(target)).video_BKP.isfinite().all()
    assert ledger.interpolated and sorted([*ledger.interpolated, *ledger.mapped]) == sorted(tensors)
    assert ledger.notes == [f"clip.{key} {getattr(source.clip, key)} -> {value}" for key, value in change.items()]


def test_time_positions_stretch_with_the_clip(odd_config) -> None:
    source, target = odd_config(), odd_config(clip={"num_frames": 24, "hop_samples": 200})
    tensors = state(source)
    table = torch.arange(6.0)[:, None, None].expand(6, 9, 96).reshape(1, 54, 96)
    adapted, _ = adapt_weights({**tensors, "video_encoder.position_table": table}, source, target)
    stretched = adapted["video_encoder.position_table"].view(12, 9, 96)
    torch.testing.assert_close(stretched[1:-1, 4, 7], torch.arange(1.0, 11) / 2 - 0.25)


def test_a_resampled_token_map_keeps_the_scale_of_its_output(odd_config) -> None:
    """Twice as many equal tokens in have to give the same tokens out."""
    source, target = odd_config(), odd_config(clip={"hop_samples": 50})
    tensors = state(source)
    adapted, _ = adapt_weights(tensors, source, target)
    old, new = tensors["a2v.token_map.weight"], adapted["a2v.token_map.weight"]
    assert new.shape == (9, 16) and old.shape == (9, 8)
    torch.testing.assert_close(old.sum(dim=1), new.sum(dim=1))


def test_a_changed_mel_normalisation_is_folded_without_loss(odd_config, inputs) -> None:
    source, target = odd_config(), odd_config(clip={"mel_mean": -3.0, "mel_std": 2.0})
    old, new = build_model(source), build_model(target)
    adapted, ledger = adapt_weights(old.state_dict(), source, target)
    load_into(new, adapted, "adapted")
    _, log_mel, seeds = inputs(source)
    old_mel = (log_mel - source.clip.mel_mean) / source.clip.mel_std
    new_mel = (log_mel - target.clip.mel_mean) / target.clip.mel_std
    expected = old.audio_encoder(patchify_audio(old_mel, source.model), seeds)
    torch.testing.assert_close(
        new.audio_encoder(patchify_audio(new_mel, target.model), seeds), expected, atol=1e-4, rtol=1e-4
    )
    assert list(ledger.folded) == ["audio_encoder.patch_embed.weight", "audio_encoder.patch_embed.bias"]


def test_what_lora_learnt_is_added_to_the_weights_without_loss(odd_config, inputs) -> None:
    source, target = odd_config("finetune", finetune={"encoders": "lora"}), odd_config("finetune")
    old, new = build_model(source), build_model(target)
    with torch.no_grad():
        for name, parameter in old.named_parameters():
            if is_lora(name):
                parameter.normal_(std=0.2)
    adapted, ledger = adapt_weights(old.state_dict(), source, target)
    load_into(new, adapted, "adapted", ledger.new)
    expected = old(*inputs(source)).overall_B
    torch.testing.assert_close(new(*inputs(target)).overall_B, expected, atol=1e-5, rtol=1e-5)
    assert len(ledger.folded) == 2 * 4 * 2 and not (ledger.new or ledger.dropped)
    assert "video_encoder.stack.blocks.0-3.attn.qkv.weight" in ledger.describe()
    assert ledger.notes == ["finetune.encoders lora -> train"]


def test_one_encoder_of_a_classifier_may_be_pretrained_further(odd_config) -> None:
    source, target = odd_config("finetune"), odd_config()
    adapted, ledger = adapt_weights(state(source), source, target, only="video")
    assert {name.split(".")[0] for name in adapted} == {"video_encoder"}
    assert sorted([*adapted, *ledger.new]) == sorted(state(target))
    assert ledger.new["video_decoder.head.bias"] == "a classifier has no decoders"
    assert ledger.new["a2v.norm.bias"] == "only video is asked for of this file"
    assert len(ledger.dropped) == len(state(source)) - len(adapted)


def test_what_cannot_be_adapted_is_refused_in_one_message(odd_config) -> None:
    source = odd_config()
    target = odd_config(
        model={"size": "small", "video_layer_norm_eps": 1e-5, "fusion_layer_norm_eps": 1e-5, "tubelet_frames": 1}
    )
    with pytest.raises(CheckpointError) as caught:
        adapt_weights(state(source), source, target)
    lines = str(caught.value).splitlines()
    assert lines == [
        "source weights: it was trained with a LayerNorm epsilon of 1e-6, model.fusion_layer_norm_eps is 1e-5; "
        "add model.fusion_layer_norm_eps=1e-6 after --to CONFIG, or to the config",
        "source weights: its video encoder is 96 wide and 4 blocks deep, model.size=small is 384 x 12; "
        "add model.size=tiny after --to CONFIG, or to the config",
        "source weights: its video patches are 2 x 16 x 16, those of model.tubelet_frames and model.patch_size 1 x 16 x 16",
        "source weights: it was trained with a LayerNorm epsilon of 1e-6, model.video_layer_norm_eps is 1e-5; "
        "add model.video_layer_norm_eps=1e-6 after --to CONFIG, or to the config",
        "source weights: its audio encoder is 96 wide and 4 blocks deep, model.size=small is 384 x 12; "
        "add model.size=tiny after --to CONFIG, or to the config",
    ]


def test_unknown_or_missing_keys_of_the_source_are_errors(odd_config) -> None:
    config = odd_config()
    tensors = state(config)
    with pytest.raises(CheckpointError, match="source weights: unexpected key surprise"):
        adapt_weights({**tensors, "surprise": torch.zeros(1)}, config, odd_config("finetune"))
    del tensors["a2v.norm.bias"]
    with pytest.raises(CheckpointError, match=r"source weights: missing key a2v\.norm\.bias"):
        adapt_weights(tensors, config, odd_config("finetune"))


def test_adapted_weights_can_be_adapted_again(odd_config) -> None:
    source, target = odd_config(), odd_config("finetune")
    adapted, ledger = adapt_weights(state(source), source, target)
    finer = odd_config("finetune", clip={"image_size": 96})
    again, second = adapt_weights(adapted, target, finer, left_out=ledger.new)
    assert second.new == ledger.new and "video_encoder.position_table" in again
    new_pool = [name for name in ledger.new if name != "video_pool.query.bias"]
    almost = {**adapted, "video_pool.query.bias": build_model(target).state_dict()["video_pool.query.bias"]}
    third = adapt_weights(almost, target, finer, left_out=new_pool)[1]
    assert third.new["video_pool.query.weight"] == "the source file does not hold it"


def test_ledger_reads_well(odd_config) -> None:
    source, target = odd_config(), odd_config("finetune", clip={"image_size": 96, "mel_mean": 0.0})
    text = adapt_weights(state(source), source, target)[1].describe()
    assert "video_encoder.position_table [1, 54, 96] -> [1, 216, 96]" in text
    assert "dropped        62  video_decoder 31, audio_decoder 31" in text
    assert "clip.image_size 48 -> 96" in text and "folded" in text
