"""VideoMAE's files, pretrained and finetuned, under both sets of names, become our video encoder and decoder."""

import math
from collections.abc import Callable

import published_video as published
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.importers.source import Conversion
from avff.models.importers.videomae import VIDEOMAE
from avff.models.patches import patchify_video
from avff.objectives.reconstruction import normalise_patches

MakeConfig = Callable[..., Config]
TINY, TINY_DECODER = published.TINY, published.TINY_DECODER


@pytest.fixture
def target(tiny_config: MakeConfig) -> MakeConfig:
    """A config of 16 frames of 224 px: `target(stage, **model)`."""

    def make(stage: str = "pretrain", **model: object) -> Config:
        return tiny_config(stage, clip={"num_frames": 16, "image_size": 224}, model=model)

    return make


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    return published.seeded(published.videomae_layout(TINY, TINY_DECODER), seed=1)


@pytest.fixture(scope="module")
def hub() -> dict[str, Tensor]:
    return published.seeded(published.videomae_hub_layout(TINY, TINY_DECODER), seed=2)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """ImageNet-normalised noise that differs along every axis, (1, 3, 16, 224, 224)."""
    noise = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(3))
    return noise * torch.linspace(0.2, 1, 224) * torch.linspace(0.5, 1, 224)[:, None]


def ours_of(part: str, weights: dict[str, Tensor], config: Config) -> tuple[torch.nn.Module, Conversion]:
    conversion = published.convert(VIDEOMAE, weights, config)
    return published.loaded(config, conversion, part), conversion


def test_layouts_have_the_published_number_of_keys_and_parameters() -> None:
    """94.2 million is what the model hub counts for `videomae-base`."""
    for layout, keys in (
        (published.videomae_layout(published.BASE, published.BASE_DECODER), 218),
        (published.videomae_hub_layout(published.BASE, published.BASE_DECODER), 250),
    ):
        assert len(layout) == keys
        assert sum(math.prod(shape) for shape in layout.values()) == 94_210_944


@torch.no_grad()
def test_tokens_equal_the_pretrained_sources(pretrained: dict[str, Tensor], frames: Tensor, target: MakeConfig) -> None:
    config = target()
    encoder, conversion = ours_of("video_encoder", pretrained, config)
    theirs = published.run_videomae(pretrained, frames, TINY)
    theirs = published.apply_norm(pretrained, "encoder.norm", theirs, 1e-6)
    ours = published.our_tokens(encoder, config, frames)
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4
    assert conversion.layer_norm_eps == {"video": 1e-6}
    assert conversion.folded == {}
    assert "computed, not stored" in conversion.filled["video_encoder.position_table"]


@torch.no_grad()
def test_tokens_equal_the_model_hubs(hub: dict[str, Tensor], frames: Tensor, target: MakeConfig) -> None:
    config = target()
    encoder, _ = ours_of("video_encoder", hub, config)
    theirs = published.apply_norm(hub, "videomae.layernorm", published.run_videomae_hub(hub, frames, TINY), 1e-12)
    assert (published.our_tokens(encoder, config, frames) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["pretrained", "hub"])
@torch.no_grad()
def test_decoder_predicts_what_the_source_does(kind: str, request: pytest.FixtureRequest, target: MakeConfig) -> None:
    """With its head: the source lists the colours of each pixel together, ours the pixels of each colour."""
    weights = request.getfixturevalue(kind)
    run = {"pretrained": published.run_videomae_decoder, "hub": published.run_videomae_hub_decoder}[kind]
    config = target()
    decoder, _ = ours_of("video_decoder", weights, config)
    tokens = torch.randn(1, published.NUM_TOKENS, TINY.width, generator=torch.Generator().manual_seed(4))
    slices = config.clip.num_slices
    ours = decoder(rearrange(tokens, "b (s l) d -> b s l d", s=slices), torch.arange(slices)[None])
    theirs = rearrange(run(weights, tokens, TINY_DECODER), "b l (p c) -> b l (c p)", c=3)
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4


def test_targets_of_the_source_are_ours_but_for_the_unbiased_variance(frames: Tensor, target: MakeConfig) -> None:
    """Why its head carries over: what it learnt to predict, in our order, is 0.1 % away from our targets."""
    rgb = torch.rand(frames.shape, generator=torch.Generator().manual_seed(5))
    cut = rearrange(rgb, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw) c", pt=2, ph=16, pw=16)
    theirs = (cut - cut.mean(2, keepdim=True)) / (cut.var(2, keepdim=True).sqrt() + 1e-6)
    seen = rearrange(published.imagenet_normalised(rgb), "b c t h w -> b t c h w")
    ours = normalise_patches(patchify_video(seen, target().model), 3)
    ratio = ours / rearrange(theirs, "b l p c -> b l (c p)")
    assert ratio.median() == pytest.approx(math.sqrt(512 / 511), abs=1e-4)
    assert (ours - math.sqrt(512 / 511) * rearrange(theirs, "b l p c -> b l (c p)")).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["own names", "hub"])
@torch.no_grad()
def test_finetuned_tokens_are_exact_before_the_norm_that_pools(kind: str, frames: Tensor, target: MakeConfig) -> None:
    config = target()
    if kind == "hub":
        weights = published.seeded(published.videomae_hub_layout(TINY, None), seed=6)
        theirs = published.run_videomae_hub(weights, frames, TINY)
    else:
        weights = published.seeded(published.videomae_finetuned_layout(TINY), seed=6)
        theirs = published.run_videomae(weights, frames, TINY, start="")
    encoder, conversion = ours_of("video_encoder", weights, config)
    ours = published.our_tokens(encoder, config, frames)
    assert (ours - F.layer_norm(theirs, (TINY.width,), eps=1e-6)).abs().max() < 1e-4
    assert "mean over all tokens" in conversion.filled["video_encoder.stack.norm.weight"]
    assert any(note.startswith("finetuned") for note in conversion.notes)
    assert {"fc_norm.weight", "fc_norm.bias"} < set(conversion.dropped)
    assert conversion.left_out["video_decoder."] == "the file holds no decoder; those of the pretraining do"


@pytest.mark.parametrize("layout", [published.videomae_layout, published.videomae_hub_layout])
def test_base_files_fit_the_base_model(layout: Callable[..., published.Shapes], target: MakeConfig) -> None:
    weights = published.blank(layout(published.BASE, published.BASE_DECODER))
    config = target(size="base")
    conversion = published.convert(VIDEOMAE, weights, config)
    assert set(conversion.dropped) == {"mask_token"}
    video = {name for name in published.target_shapes(config) if name.startswith("video_")}
    assert set(conversion.tensors) == video


@pytest.mark.parametrize("kind", ["pretrained", "hub"])
def test_an_extra_key_is_an_error(kind: str, request: pytest.FixtureRequest, target: MakeConfig) -> None:
    weights = {**request.getfixturevalue(kind), "encoder.norm.scale": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"published.pt: unexpected key encoder.norm.scale"):
        published.convert(VIDEOMAE, weights, target())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("pretrained", "encoder.norm.weight"),
        ("pretrained", "decoder.blocks.1.attn.q_bias"),
        ("hub", "videomae.encoder.layer.3.attention.attention.key.weight"),
        ("hub", "videomae.layernorm.bias"),
    ],
)
def test_a_missing_key_is_an_error_that_names_the_nearest(
    kind: str, name: str, request: pytest.FixtureRequest, target: MakeConfig
) -> None:
    weights = dict(request.getfixturevalue(kind))
    weights[f"{name}_"] = weights.pop(name)
    with pytest.raises(CheckpointError, match=rf"missing key {name} \(nearest there: {name}_"):
        published.convert(VIDEOMAE, weights, target())


def test_a_finetuned_file_without_any_last_norm_is_refused(target: MakeConfig) -> None:
    weights = published.blank(published.videomae_finetuned_layout(TINY))
    del weights["fc_norm.weight"]
    with pytest.raises(CheckpointError, match=r"missing key norm.weight"):
        published.convert(VIDEOMAE, weights, target())
