"""MARLIN's files become our video encoder and decoder: the same tokens, and no key without a fate."""

import math
from collections.abc import Callable

import published_video as published
import pytest
import torch
from torch import Tensor

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.importers.marlin import MARLIN

MakeConfig = Callable[..., Config]
TINY, TINY_DECODER = published.TINY, published.TINY_DECODER


@pytest.fixture
def target(tiny_config: MakeConfig) -> MakeConfig:
    """A config of 16 frames of 224 px with MARLIN's epsilon: `target(stage, **model)`."""

    def make(stage: str = "pretrain", **model: object) -> Config:
        clip = {"num_frames": 16, "image_size": 224}
        return tiny_config(stage, clip=clip, model={"video_layer_norm_eps": 1e-5, **model})

    return make


@pytest.fixture(scope="module")
def full() -> dict[str, Tensor]:
    """A full file at our smallest size, with the stored position tables that MARLIN has."""
    weights = published.seeded(published.marlin_layout(TINY, TINY_DECODER), seed=1)
    for name, size in (("encoder", TINY), ("decoder", TINY_DECODER)):
        weights[f"{name}.pos_embedding.emb"] = published.counting_table(published.NUM_TOKENS, size.width)
    return weights


@pytest.fixture(scope="module")
def encoder_file(full: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in full.items() if name.startswith("encoder.")}


def rgb(seed: int, batch: int = 1) -> Tensor:
    """Frames of noise in [0, 1], darker in one corner so that no axis can be swapped unseen."""
    noise = torch.rand(batch, 3, 16, 224, 224, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.2, 1, 224) * torch.linspace(0.5, 1, 224)[:, None]


@pytest.mark.parametrize(
    ("size", "millions"), [(published.SMALL, 22.48), (published.BASE, 87.43), (published.LARGE, 305.47)]
)
def test_layouts_have_the_published_number_of_parameters(size: published.Size, millions: float) -> None:
    """The figures of MARLIN's model zoo."""
    layout = published.marlin_layout(size)
    assert round(sum(math.prod(shape) for shape in layout.values()) / 1e6, 2) == millions


@torch.no_grad()
def test_tokens_equal_the_sources(encoder_file: dict[str, Tensor], target: MakeConfig) -> None:
    config = target()
    conversion = published.convert(MARLIN, encoder_file, config)
    encoder = published.loaded(config, conversion, "video_encoder")
    video = rgb(seed=2)
    theirs = published.run_marlin(encoder_file, video, TINY)
    ours = published.our_tokens(encoder, config, published.imagenet_normalised(video))
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4
    assert conversion.grids == {"video": (8, 14, 14)}
    assert conversion.layer_norm_eps == {"video": 1e-5}
    assert set(conversion.folded) == {"video_encoder.patch_embed.weight", "video_encoder.patch_embed.bias"}
    assert "encoder alone" in conversion.left_out["video_decoder."]


@torch.no_grad()
def test_decoder_of_the_full_file_equals_the_sources_up_to_its_head(
    full: dict[str, Tensor], target: MakeConfig
) -> None:
    config = target()
    conversion = published.convert(MARLIN, full, config)
    decoder = published.loaded(config, conversion, "video_decoder")
    tokens = torch.randn(2, published.NUM_TOKENS, TINY.width, generator=torch.Generator().manual_seed(3))
    theirs = published.run_marlin_decoder(full, tokens, TINY_DECODER)
    ours = decoder.stack(decoder.embed(tokens) + decoder.position_table)
    assert (ours - theirs).abs().max() < 1e-4
    assert "raw RGB" in conversion.left_out["video_decoder.head."]
    assert "raw RGB" in conversion.dropped["decoder.head.weight"]
    assert "no bias" in conversion.filled["video_decoder.embed.bias"]
    assert {"decoder.mask_token", "discriminator.layers.0.linear.weight"} < set(conversion.dropped)


@pytest.mark.parametrize(
    ("name", "size", "decoder"),
    [("small", published.SMALL, published.SMALL_DECODER), ("base", published.BASE, published.BASE_DECODER)],
)
def test_published_files_fill_the_networks_of_their_size(
    name: str, size: published.Size, decoder: published.Size, target: MakeConfig
) -> None:
    config = target(size=name)
    conversion = published.convert(MARLIN, published.blank(published.marlin_layout(size, decoder)), config)
    wanted = published.target_shapes(config)
    assert published.decoder_shapes(conversion.tensors) == {
        name: shape
        for name, shape in wanted.items()
        if name.startswith("video_decoder.") and not name.startswith("video_decoder.head.")
    }
    heads = {name for name in conversion.dropped if name.startswith("decoder.head.")}
    discriminator = {f"discriminator.layers.{i}.linear.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert set(conversion.dropped) == heads | discriminator | {"decoder.mask_token"}


def test_the_decoder_of_the_large_file_is_converted_whole(target: MakeConfig) -> None:
    """It has 12 blocks; which target takes it is not the importer's business."""
    layout = published.marlin_layout(TINY, published.LARGE_DECODER)
    conversion = published.convert(MARLIN, published.blank(layout), target())
    shapes = published.decoder_shapes(conversion.tensors)
    assert shapes["video_decoder.stack.blocks.11.attn.qkv.weight"] == (1536, 512)
    assert shapes["video_decoder.embed.weight"] == (512, TINY.width)


def test_files_of_the_model_hub_begin_with_marlin(encoder_file: dict[str, Tensor], target: MakeConfig) -> None:
    plain = published.convert(MARLIN, encoder_file, target())
    hub = {f"marlin.{name}": tensor for name, tensor in encoder_file.items()}
    assert MARLIN.recognises({name: tuple(tensor.shape) for name, tensor in hub.items()})
    converted = published.convert(MARLIN, hub, target())
    assert all(torch.equal(plain.tensors[name], tensor) for name, tensor in converted.tensors.items())


def test_another_position_table_is_taken_and_said(encoder_file: dict[str, Tensor], target: MakeConfig) -> None:
    assert not any("sinusoid" in note for note in published.convert(MARLIN, encoder_file, target()).notes)
    learned = encoder_file["encoder.pos_embedding.emb"] + 0.25
    conversion = published.convert(MARLIN, {**encoder_file, "encoder.pos_embedding.emb": learned}, target())
    assert torch.equal(conversion.tensors["video_encoder.position_table"], learned)
    assert any("up to 0.25 away from the sinusoid" in note for note in conversion.notes)


def test_an_extra_key_is_an_error(encoder_file: dict[str, Tensor], target: MakeConfig) -> None:
    extra = {**encoder_file, "encoder.blocks.2.gamma_1": torch.ones(TINY.width)}
    with pytest.raises(CheckpointError, match=r"published.pt: unexpected key encoder.blocks.2.gamma_1 \(nearest"):
        published.convert(MARLIN, extra, target())


def test_a_missing_key_is_an_error_that_names_the_nearest(encoder_file: dict[str, Tensor], target: MakeConfig) -> None:
    renamed = dict(encoder_file)
    renamed["encoder.blocks.1.attn.vbias"] = renamed.pop("encoder.blocks.1.attn.v_bias")
    with pytest.raises(CheckpointError, match=r"missing key encoder.blocks.1.attn.v_bias \(nearest .*attn.vbias"):
        published.convert(MARLIN, renamed, target())


def test_an_encoder_of_no_size_of_ours_is_refused(target: MakeConfig) -> None:
    layout = published.marlin_layout(published.Size(96, 3, 3))
    with pytest.raises(CheckpointError, match="96 wide and 3 blocks deep, which is no size of ours"):
        published.convert(MARLIN, published.blank(layout), target())
