"""What holds for AudioMAE, CAV-MAE and HAVIC alike: their published layouts, who recognises them, and no key lost."""

import argparse
from collections.abc import Callable

import pytest
import torch
from audio_visual_sources import (
    Layout,
    audiomae_finetuned_layout,
    audiomae_layout,
    cav_mae_finetuned_layout,
    cav_mae_layout,
    havic_finetuned_layout,
    havic_layout,
    num_parameters,
    seeded,
)
from converting import convert

from avff.errors import CheckpointError
from avff.models import build_model
from avff.models.adapt import adapt_conversion
from avff.models.importers.audiomae import AUDIOMAE
from avff.models.importers.cav_mae import CAV_MAE
from avff.models.importers.havic import HAVIC
from avff.models.importers.reading import read_published
from avff.models.importers.registry import SOURCES, recognise
from avff.models.importers.source import Source
from avff.models.weights import load_into

PUBLISHED: dict[str, tuple[Source, Callable[..., Layout]]] = {
    "audiomae": (AUDIOMAE, audiomae_layout),
    "audiomae finetuned": (AUDIOMAE, audiomae_finetuned_layout),
    "cav_mae": (CAV_MAE, cav_mae_layout),
    "cav_mae finetuned": (CAV_MAE, cav_mae_finetuned_layout),
    "havic": (HAVIC, havic_layout),
    "havic finetuned": (HAVIC, havic_finetuned_layout),
}
LITTLE = {AUDIOMAE: {"width": 96, "depth": 4}, CAV_MAE: {"width": 96, "own": 3}, HAVIC: {"width": 96, "depth": 4}}

published = pytest.mark.parametrize(("source", "layout"), PUBLISHED.values(), ids=PUBLISHED)
stages = pytest.mark.parametrize("stage", ["pretrain", "finetune"])


@pytest.fixture
def config(tiny_config):
    """A config of the published clip: 16 frames of 224 pixels, 1024 x 128 log-mel."""

    def make(stage: str = "pretrain", size: str = "tiny", **model: float):
        clip = {"num_frames": 16, "image_size": 224, "hop_samples": 50, "num_mel_bins": 128, "num_slices": 8}
        return tiny_config(stage, clip=clip, model={"size": size, **model})

    return make


def little(source: Source, layout: Callable[..., Layout]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in layout(**LITTLE[source]).items()}


def test_layouts_have_the_published_numbers_of_parameters() -> None:
    """As the sources' own training logs print them (AudioMAE's finetuning counts no positions)."""
    assert num_parameters(audiomae_finetuned_layout()) - 513 * 768 == 85_659_407
    assert round(num_parameters(cav_mae_layout()) / 1e6, 3) == 191.036
    assert round(num_parameters(cav_mae_finetuned_layout()) / 1e6, 3) == 164.907
    assert len(audiomae_layout()) == 430


@published
@stages
def test_the_published_base_layout_fits_the_base_model(config, source, layout, stage) -> None:
    target = config(stage, size="base")
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in build_model(target).state_dict().items()}
        weights = {name: torch.empty(shape) for name, shape in layout().items()}
        conversion = convert(source, weights, target)
    filled = {name: tensor.shape for name, tensor in conversion.tensors.items()}
    encoders = [part for part in ("video_encoder.", "audio_encoder.") if any(n.startswith(part) for n in filled)]
    assert encoders and set(filled) == {name for name in wanted if name.startswith(tuple(encoders))}
    assert all(wanted[name] == shape for name, shape in filled.items())
    assert all(name in filled or name.startswith(tuple(conversion.left_out)) for name in wanted)
    assert not any(name.startswith(tuple(conversion.left_out)) for name in filled)
    used = "\n".join(conversion.made_of.values())
    assert all(name in conversion.dropped or name in used for name in weights)
    assert conversion.mel is not None and set(conversion.layer_norm_eps) == {part.split("_")[0] for part in encoders}


@published
def test_only_its_own_source_recognises_a_layout(source, layout) -> None:
    everybody = {each.name: each for each in (*SOURCES, AUDIOMAE, CAV_MAE, HAVIC)}
    shapes = layout()
    assert [name for name, each in everybody.items() if each.recognises(shapes)] == [source.name]


@published
def test_an_extra_key_is_an_error(config, source, layout) -> None:
    with pytest.raises(CheckpointError, match=r"published\.pth: unexpected key surprise"):
        convert(source, {**little(source, layout), "surprise": torch.zeros(1)}, config())


EXTRA_INSIDE = {
    AUDIOMAE: "blocks.3.attn.q_norm.weight",
    CAV_MAE: "blocks_u.0.norm3_a.weight",
    HAVIC: "visual_encoder.blocks.0.gamma_1",
}
MISSING = {
    AUDIOMAE: "blocks.2.attn.qkv.bias",
    CAV_MAE: "norm_a.weight",
    HAVIC: "audio_encoder.blocks.1.attn.q_bias",
}


@published
def test_an_extra_key_inside_an_encoder_is_an_error(config, source, layout) -> None:
    extra = EXTRA_INSIDE[source]
    with pytest.raises(CheckpointError, match=f"unexpected key {extra} .nearest: "):
        convert(source, {**little(source, layout), extra: torch.zeros(96)}, config())


@published
def test_a_missing_key_is_an_error(config, source, layout) -> None:
    """The same key of another block is not what its name was meant to be."""
    weights = little(source, layout)
    del weights[MISSING[source]]
    with pytest.raises(CheckpointError) as caught:
        convert(source, weights, config())
    assert str(caught.value) == f"published.pth: missing key {MISSING[source]}"


@published
def test_an_encoder_of_no_size_of_ours_is_refused(config, source, layout) -> None:
    shapes = layout(**{**LITTLE[source], "width": 768})
    with torch.device("meta"), pytest.raises(CheckpointError, match="768 wide and 4 blocks deep, which is no size"):
        convert(source, {name: torch.empty(shape) for name, shape in shapes.items()}, config())


@published
@stages
def test_a_conversion_starts_a_model_of_either_stage(config, source, layout, stage) -> None:
    """Where the target's LayerNorm epsilon is the source's; if not, both are told."""
    weights = little(source, layout)
    eps = {
        f"{modality}_layer_norm_eps": value
        for modality, value in convert(source, weights, config()).layer_norm_eps.items()
    }
    target = config(stage, **eps)
    model = build_model(target)
    tensors, ledger = adapt_conversion(convert(source, weights, target), source, target)
    load_into(model, tensors, "adapted", ledger.new)
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"audio_encoder"} if source is AUDIOMAE else parts == {"audio_encoder", "video_encoder"}
    assert all(ledger.new.values()) and set(ledger.dropped) <= set(weights)
    other = config(stage, **{name: 3e-5 for name in eps})
    with pytest.raises(CheckpointError) as caught:
        adapt_conversion(convert(source, weights, other), source, other)
    assert all(f"model.{name} is 3e-5; add model.{name}=" in str(caught.value) for name in eps)


@pytest.mark.parametrize("container", [True, False], ids=["under model", "bare and parallel"])
def test_files_are_read_recognised_and_converted(config, tmp_path, container) -> None:
    weights = seeded(audiomae_layout(**LITTLE[AUDIOMAE]), seed=1)
    file = {"model": weights, "epoch": 32, "args": argparse.Namespace(model="mae_vit_base_patch16")}
    bare = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save(file if container else bare, tmp_path / "pretrained.pth")
    read = read_published(tmp_path / "pretrained.pth")
    source = recognise(read, tmp_path / "pretrained.pth")
    assert source is AUDIOMAE
    tensors, expected = convert(source, read, config()).tensors, convert(AUDIOMAE, weights, config()).tensors
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_statistics_and_epsilons_are_those_of_the_sources_code(config) -> None:
    stated = {source: convert(source, little(source, layout), config()) for source, layout in PUBLISHED.values()}
    assert stated[AUDIOMAE].mel == (-4.2677393, 9.1379948) and stated[AUDIOMAE].layer_norm_eps == {"audio": 1e-6}
    assert stated[CAV_MAE].mel == (-5.081, 4.4849) and set(stated[CAV_MAE].layer_norm_eps.values()) == {1e-5}
    assert stated[HAVIC].mel == (-6.9960, 3.1205) and set(stated[HAVIC].layer_norm_eps.values()) == {1e-5}


def test_all_are_non_commercial_and_say_why() -> None:
    for source in (AUDIOMAE, CAV_MAE, HAVIC):
        assert source.non_commercial and "CC-BY-NC-4.0" in source.licence
    assert CAV_MAE.licence.startswith("BSD-2-Clause;") and HAVIC.licence.startswith("MIT;")
