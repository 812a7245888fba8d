"""Open-AVFF's files into our networks: equal tokens on both sides, every key accounted for."""

from functools import cache

import pytest
import torch
from einops import rearrange
from open_avff_formula import formula_inputs, formula_weights

from avff import config as config_module
from avff.config import Config, TransformerSize
from avff.errors import CheckpointError
from avff.models.adapt import adapt_conversion
from avff.models.build import build_model
from avff.models.detectors.open_avff import OpenAvffPretrain
from avff.models.detectors.open_avff_files import expected_shapes
from avff.models.detectors.open_avff_parts import OpenAvffSize
from avff.models.importers.open_avff import OPEN_AVFF
from avff.models.importers.reading import read_published
from avff.models.importers.registry import recognise
from avff.models.importers.source import SourceKeys
from avff.models.patches import join_slices, patchify_audio, patchify_video
from avff.strict_yaml import from_dict

SIZE = OpenAvffSize(encoder_depth=1, decoder_width=96, decoder_depth=1)
TOLERANCE = 1e-5


@pytest.fixture
def config_of(monkeypatch):
    """Builds a config of Open-AVFF's clip whose networks are as wide as its own and one block deep."""
    sizes = (TransformerSize(width=768, depth=1, heads=12), TransformerSize(width=96, depth=1, heads=6))
    monkeypatch.setitem(config_module.MODEL_SIZES, "tiny", sizes)
    labels = {"pretrain": "real", "finetune": "known"}
    eps = dict.fromkeys(("video_layer_norm_eps", "audio_layer_norm_eps"), 1e-5)

    def make(stage="pretrain", **clip):
        values = {"stage": stage, "model": {"size": "tiny", **eps}, "clip": clip, "data": {"labels": labels[stage]}}
        return from_dict(Config, {"name": "open", **values}, where="config_of")

    return make


@cache
def weights_of(stage):
    return formula_weights(expected_shapes(stage, SIZE))


def file_of(stage):
    """Keys of a file of that stage, with formula weights."""
    return SourceKeys(weights_of(stage), f"{stage}.pth")


def load(config, tensors):
    model = build_model(config)
    model.load_state_dict(tensors, strict=False)
    return model.eval()


@pytest.fixture(scope="module")
def theirs():
    with torch.device("meta"):
        network = OpenAvffPretrain(SIZE)
    network.load_state_dict(weights_of("pretrain"), assign=True)
    return network.eval()


@pytest.mark.slow
@torch.inference_mode()
def test_encoders_give_their_tokens_in_our_order(theirs, config_of):
    config = config_of()
    ours = load(config, adapt_conversion(OPEN_AVFF.convert(file_of("pretrain"), config), OPEN_AVFF, config)[0])
    mel_BMF, video_BCTHW = formula_inputs(1)
    seed_B = torch.zeros(1, dtype=torch.int64)
    video_patches = patchify_video(video_BCTHW.transpose(1, 2), config.model)
    video = join_slices(ours.video_encoder(video_patches, seed_B))
    assert (video - theirs.visual_encoder(video_BCTHW)).abs().max() < TOLERANCE
    audio = join_slices(ours.audio_encoder(patchify_audio(mel_BMF, config.model), seed_B))
    expected = rearrange(theirs.audio_encoder(mel_BMF), "b (f t) d -> b (t f) d", f=8)
    assert (audio - expected).abs().max() < TOLERANCE
    assert (audio - theirs.audio_encoder(mel_BMF)).abs().max() > 1  # the order is not the same


@torch.inference_mode()
def test_decoders_are_equal_up_to_their_heads(theirs, config_of):
    config = config_of()
    ours = load(config, OPEN_AVFF.convert(file_of("pretrain"), config).tensors)
    generator = torch.Generator().manual_seed(0)
    for name, decoder, tokens in (("audio", theirs.audio_decoder, 512), ("video", theirs.visual_decoder, 1568)):
        tokens_BLD = torch.randn(1, tokens, 768, generator=generator)
        entering = rearrange(tokens_BLD, "b (f t) d -> b (t f) d", f=8) if name == "audio" else tokens_BLD
        own = getattr(ours, f"{name}_decoder")
        found = own.stack(own.embed(entering) + own.position_table)
        if name == "audio":
            expected = decoder.decoder_norm(decoder.blocks(decoder.decoder_embed(tokens_BLD)))
            expected = rearrange(expected, "b (f t) d -> b (t f) d", f=8)
        else:
            expected = decoder.norm(decoder.blocks(decoder.pos_embedding(decoder.decoder_patch_embed(tokens_BLD))))
        assert (found - expected).abs().max() < TOLERANCE, name


@torch.inference_mode()
def test_statistics_of_the_spectrogram_are_folded(theirs, config_of):
    config = config_of(mel_mean=-4.0, mel_std=2.0)
    conversion = OPEN_AVFF.convert(file_of("pretrain"), config)
    assert conversion.mel == (-5.081, 4.4849)
    ours = load(config, adapt_conversion(conversion, OPEN_AVFF, config)[0])
    mel_BMF = formula_inputs(1)[0]
    same_sound = (mel_BMF * 4.4849 - 5.081 + 4.0) / 2.0
    tokens = ours.audio_encoder(patchify_audio(same_sound, config.model), torch.zeros(1, dtype=torch.int64))
    expected = rearrange(theirs.audio_encoder(mel_BMF), "b (f t) d -> b (t f) d", f=8)
    assert (join_slices(tokens) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("target", ["pretrain", "finetune"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_every_key_of_both_sides_is_accounted_for(config_of, stage, target):
    config, keys = config_of(target), file_of(stage)
    conversion = OPEN_AVFF.convert(keys, config)
    used = {
        name for made_of in conversion.made_of.values() for name in made_of.removesuffix(", time first").split(", ")
    }
    assert used | conversion.dropped.keys() == set(keys.names()) and not used & conversion.dropped.keys()
    assert all(name in conversion.made_of or name in conversion.filled for name in conversion.tensors)
    tensors, ledger = adapt_conversion(conversion, OPEN_AVFF, config)
    expected = {name: tensor.shape for name, tensor in build_model(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in tensors.items()}.items() <= expected.items()
    assert tensors.keys() | set(ledger.new) == expected.keys()
    held = {name.split(".")[0] for name in tensors}
    both = {"video_encoder", "audio_encoder"}
    assert held == (both | {"video_decoder", "audio_decoder"} if stage == target == "pretrain" else both)
    assert "mel bands" in ledger.new["a2v.token_map.weight"] and "batch" in ledger.dropped["v2a.transformer.fc1.bias"]


def test_filled_constants_say_why(config_of):
    filled = OPEN_AVFF.convert(file_of("pretrain"), config_of()).filled
    assert {name.rsplit(".blocks.", 1)[0] if ".blocks." in name else name for name in filled} == {
        "video_encoder.modality_embedding",
        "audio_decoder.position_table",
        *(f"{modality}_{part}.stack" for modality in ("video", "audio") for part in ("encoder", "decoder")),
    }
    assert all(why.startswith("0: ") for why in filled.values())


def test_a_published_file_is_recognised_with_its_licence(tmp_path):
    path = tmp_path / "stage3.pth"
    torch.save({f"module.{name}": tensor for name, tensor in weights_of("finetune").items()}, path)
    source = recognise(read_published(path), path)
    assert source is OPEN_AVFF
    assert (source.licence, source.non_commercial) == ("none stated", True)


def test_every_wrong_key_is_named_at_once(config_of):
    keys = dict(weights_of("finetune"))
    keys["audio_encoder.pos_embed"] = torch.zeros(1, 100, 768)
    keys["mlp_head.fc4.weight"] = keys.pop("mlp_audio.weight")
    with pytest.raises(CheckpointError) as caught:
        OPEN_AVFF.convert(SourceKeys(keys, "stage3.pth"), config_of())
    message = str(caught.value)
    assert "stage3.pth: missing key mlp_audio.weight [1024, 512]" in message
    assert "unexpected key mlp_head.fc4.weight (nearest: mlp_head.fc" in message
    assert "key audio_encoder.pos_embed has shape [1, 100, 768], the model's is [1, 512, 768]" in message
