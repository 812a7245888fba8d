"""Image ViTs become a video encoder: exact on still clips save for the class token; and who recognises whose files."""

from collections.abc import Callable
from pathlib import Path

import published_video as published
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.importers.marlin import MARLIN
from avff.models.importers.registry import recognise
from avff.models.importers.source import Source
from avff.models.importers.videomae import VIDEOMAE
from avff.models.importers.vit import MAE, TIMM_VIT, TIMM_VIT_HALF

MakeConfig = Callable[..., Config]
TINY, TINY_DECODER = published.TINY, published.TINY_DECODER


@pytest.fixture
def target(tiny_config: MakeConfig) -> MakeConfig:
    """A config of 16 frames: `target(stage, image_size=224, **model)`."""

    def make(stage: str = "pretrain", image_size: int = 224, **model: object) -> Config:
        return tiny_config(stage, clip={"num_frames": 16, "image_size": image_size}, model=model)

    return make


@pytest.fixture(scope="module")
def image() -> Tensor:
    """RGB in [0, 1] that differs along every axis, (1, 3, 224, 224)."""
    noise = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(0.2, 1, 224) * torch.linspace(0.5, 1, 224)[:, None]


def still(image: Tensor) -> Tensor:
    """Sixteen times the same picture, as our networks want it."""
    return published.imagenet_normalised(image[:, :, None].expand(-1, -1, 16, -1, -1))


def imagenet(image: Tensor) -> Tensor:
    return published.imagenet_normalised(image[:, :, None])[:, :, 0]


def steps_of(source: Source, weights: dict[str, Tensor], config: Config, video: Tensor) -> Tensor:
    """Returns our tokens by time step, (B, time, patches, D)."""
    encoder = published.loaded(config, published.convert(source, weights, config), "video_encoder")
    return published.our_tokens(encoder, config, video).unflatten(1, (8, -1))


@pytest.mark.parametrize("source", [MAE, TIMM_VIT, TIMM_VIT_HALF], ids=lambda source: source.name)
@torch.no_grad()
def test_a_still_clip_gives_the_images_tokens_at_every_time(source: Source, image: Tensor, target: MakeConfig) -> None:
    layout = published.vit_layout(TINY, num_classes=0 if source is MAE else 1000)
    weights = published.seeded(layout, seed=2)
    seen = 2 * image - 1 if source is TIMM_VIT_HALF else imagenet(image)
    theirs = published.apply_norm(weights, "norm", published.run_vit(weights, seen, TINY, with_class=False), 1e-6)
    ours = steps_of(source, weights, target(), still(image))
    assert theirs.std() > 0.5
    assert (ours - theirs[:, None]).abs().max() < 1e-4


@torch.no_grad()
def test_the_class_token_is_all_that_is_missing(image: Tensor, target: MakeConfig) -> None:
    """One key among 197 moves the patches' tokens a little; with seeded weights the cosine is about 0.999."""
    weights = published.seeded(published.vit_layout(TINY), seed=2)
    theirs = published.run_vit(weights, imagenet(image), TINY, with_class=True)
    theirs = published.apply_norm(weights, "norm", theirs, 1e-6)
    ours = steps_of(MAE, weights, target(), still(image))[:, 0]
    cosine = F.cosine_similarity(ours, theirs, dim=-1)
    print(f"cosine with and without the class token: mean {cosine.mean():.5f}, least {cosine.min():.5f}")
    assert (ours - theirs).abs().max() > 1e-3
    assert cosine.min() > 0.9


@torch.no_grad()
def test_a_moving_clip_shows_the_mean_of_each_two_frames(image: Tensor, target: MakeConfig) -> None:
    weights = published.seeded(published.vit_layout(TINY), seed=2)
    pairs = torch.rand(1, 3, 8, 224, 224, generator=torch.Generator().manual_seed(3))
    shift = 0.2 * torch.rand(1, 3, 8, 224, 224, generator=torch.Generator().manual_seed(4))
    moving = torch.stack([pairs - shift, pairs + shift], dim=3).flatten(2, 3)
    standing = torch.stack([pairs, pairs], dim=3).flatten(2, 3)
    config = target()
    ours, theirs = (
        steps_of(MAE, weights, config, published.imagenet_normalised(video)) for video in (moving, standing)
    )
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours[:, 0] - ours[:, 1]).abs().max() > 0.1


@torch.no_grad()
def test_maes_full_file_gives_the_same_encoder(target: MakeConfig) -> None:
    weights = published.seeded(published.mae_layout(TINY), seed=5)
    full = published.convert(MAE, weights, target())
    encoder = {name: weights[name] for name in published.vit_layout(TINY)}
    assert set(full.dropped) == set(weights) - set(encoder) | {"cls_token"}
    alone = published.convert(MAE, encoder, target())
    assert all(torch.equal(alone.tensors[name], tensor) for name, tensor in full.tensors.items())


@torch.no_grad()
def test_finetuned_tokens_are_exact_before_the_norm_that_pools(image: Tensor, target: MakeConfig) -> None:
    weights = published.seeded(published.mae_finetuned_layout(TINY), seed=6)
    theirs = published.run_vit(weights, imagenet(image), TINY, with_class=False)
    ours = steps_of(MAE, weights, target(), still(image))
    assert (ours - F.layer_norm(theirs, (TINY.width,), eps=1e-6)[:, None]).abs().max() < 1e-4
    conversion = published.convert(MAE, weights, target())
    assert "mean over all tokens" in conversion.filled["video_encoder.stack.norm.weight"]
    assert {"fc_norm.weight", "head.weight", "cls_token"} < set(conversion.dropped)


def test_what_no_key_shows_is_said(target: MakeConfig) -> None:
    weights = published.blank(published.vit_layout(TINY, num_classes=1000))
    plain, half = (published.convert(source, weights, target()) for source in (TIMM_VIT, TIMM_VIT_HALF))
    assert any("--format timm-vit-half" in note for note in plain.notes)
    assert any(note.endswith("--format timm-vit") for note in half.notes)
    assert (set(plain.folded), set(half.folded)) == (
        set(),
        {"video_encoder.patch_embed.weight", "video_encoder.patch_embed.bias"},
    )
    assert any("class token" in note for note in plain.notes)
    assert plain.dropped["cls_token"] == "the video encoder has no class token"
    assert plain.left_out["video_decoder."] == "a decoder of images fits none of ours"


@pytest.mark.parametrize("layout", [published.vit_layout, published.mae_layout], ids=["encoder", "full"])
def test_base_files_fit_the_base_model(
    layout: Callable[[published.Size], published.Shapes], target: MakeConfig
) -> None:
    conversion = published.convert(MAE, published.blank(layout(published.BASE)), target(size="base"))
    assert conversion.grids == {"video": (8, 14, 14)}
    assert conversion.layer_norm_eps == {"video": 1e-6}


def test_layouts_have_the_published_number_of_parameters() -> None:
    """The model hub's counts of MAE's encoder and full file and of timm's ViT-B with 1000 classes."""
    layouts = (
        (published.vit_layout(published.BASE), 85_798_656),
        (published.mae_layout(published.BASE), 111_907_840),
        (published.vit_layout(published.BASE, num_classes=1000), 86_567_656),
    )
    for layout, count in layouts:
        assert sum(torch.Size(shape).numel() for shape in layout.values()) == count


def test_a_table_of_384_px_keeps_its_grid_and_its_rows(target: MakeConfig) -> None:
    weights = published.seeded(published.vit_layout(TINY, num_classes=10, side=24), seed=7)
    conversion = published.convert(TIMM_VIT, weights, target(image_size=384))
    table = conversion.tensors["video_encoder.position_table"].unflatten(1, (8, 576))
    assert conversion.grids == {"video": (8, 24, 24)}
    assert all(torch.equal(step, weights["pos_embed"][:, 1:]) for step in table.unbind(1))


def test_a_table_without_a_row_for_the_class_token_is_taken_whole(target: MakeConfig) -> None:
    weights = published.seeded(published.vit_layout(TINY, num_classes=10), seed=8)
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    conversion = published.convert(TIMM_VIT, weights, target())
    table = conversion.tensors["video_encoder.position_table"]
    assert torch.equal(table[:, :196], weights["pos_embed"])


def test_a_table_of_no_square_is_refused(target: MakeConfig) -> None:
    weights = published.blank(published.vit_layout(TINY))
    weights["pos_embed"] = torch.zeros(1, 199, TINY.width)
    with pytest.raises(CheckpointError, match=r"published.pt: pos_embed has 199 rows"):
        published.convert(MAE, weights, target())


def test_an_extra_key_is_an_error(target: MakeConfig) -> None:
    weights = published.blank({**published.vit_layout(TINY), "blocks.0.ls1.gamma": (TINY.width,)})
    with pytest.raises(CheckpointError, match=r"published.pt: unexpected key blocks.0.ls1.gamma"):
        published.convert(MAE, weights, target())


@pytest.mark.parametrize("name", ["norm.weight", "blocks.3.attn.qkv.bias", "pos_embed", "blocks.1.mlp.fc2.weight"])
def test_a_missing_key_is_an_error_that_names_the_nearest(name: str, target: MakeConfig) -> None:
    weights = published.blank(published.vit_layout(TINY))
    weights[f"{name}_"] = weights.pop(name)
    with pytest.raises(CheckpointError, match=rf"missing key {name} \(nearest there: {name}_"):
        published.convert(MAE, weights, target())


FILES = {
    "marlin encoder": (published.marlin_layout(published.BASE), {MARLIN}),
    "marlin full": (published.marlin_layout(published.BASE, published.BASE_DECODER), {MARLIN}),
    "videomae": (published.videomae_layout(published.BASE, published.BASE_DECODER), {VIDEOMAE}),
    "videomae finetuned": (published.videomae_finetuned_layout(published.BASE), {VIDEOMAE}),
    "videomae hub": (published.videomae_hub_layout(published.BASE, published.BASE_DECODER), {VIDEOMAE}),
    "videomae hub finetuned": (published.videomae_hub_layout(published.BASE, None), {VIDEOMAE}),
    "encoder alone": (published.vit_layout(published.BASE), {MAE, TIMM_VIT, TIMM_VIT_HALF}),
    "mae full": (published.mae_layout(published.BASE), {MAE}),
    "mae finetuned": (published.mae_finetuned_layout(published.BASE), {MAE, TIMM_VIT, TIMM_VIT_HALF}),
    "timm": (published.vit_layout(published.BASE, num_classes=1000), {TIMM_VIT, TIMM_VIT_HALF}),
}
"""Layouts, and who may take them for their own: more than one where no key tells, so that the user has to say."""


@pytest.mark.parametrize("name", FILES)
def test_sources_recognise_their_own_files_alone(name: str) -> None:
    layout, owners = FILES[name]
    sources = (MARLIN, VIDEOMAE, MAE, TIMM_VIT, TIMM_VIT_HALF)
    assert {source.name for source in sources if source.recognises(layout)} == {owner.name for owner in owners}


def test_an_encoder_alone_asks_whose_it_is(tmp_path: Path) -> None:
    """DINO's and augreg's encoders look like MAE's and read other pictures."""
    weights = published.blank(published.vit_layout(TINY))
    with pytest.raises(CheckpointError, match=r"(?s)say which with --format.*mae: .*timm-vit: .*timm-vit-half: "):
        recognise(weights, tmp_path / "vit.pth")
    assert recognise(published.blank(published.mae_layout(TINY)), tmp_path / "full.pth") is MAE


def test_a_timm_file_asks_which_statistics_it_wants(tmp_path: Path) -> None:
    weights = published.blank(published.vit_layout(TINY, num_classes=1000))
    with pytest.raises(CheckpointError, match=r"(?s)say which.*timm-vit: .*ImageNet.*timm-vit-half: .*0\.5"):
        recognise(weights, tmp_path / "vit.pth")
