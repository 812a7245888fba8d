"""All that is wrong with the keys of a published file is told at once, with names that help."""

from typing import NamedTuple

import audio_visual_sources as sound
import published_video as picture
import pytest
import torch

from avff.errors import CheckpointError
from avff.models.importers.audiomae import AUDIOMAE
from avff.models.importers.cav_mae import CAV_MAE
from avff.models.importers.havic import HAVIC
from avff.models.importers.marlin import MARLIN
from avff.models.importers.source import Source, convert
from avff.models.importers.videomae import VIDEOMAE
from avff.models.importers.vit import MAE

TINY, TINY_DECODER = picture.TINY, picture.TINY_DECODER


class Broken(NamedTuple):
    """What is done to a file: four keys go, one is renamed, one gets a row too many."""

    source: Source
    layout: dict[str, tuple[int, ...]]
    gone: tuple[str, str, str, str]
    renamed: str
    misshapen: str


FILES = [
    Broken(
        AUDIOMAE,
        sound.audiomae_layout(96, 4),
        ("pos_embed", "blocks.0.norm1.weight", "blocks.2.attn.qkv.bias", "norm.bias"),
        "blocks.3.mlp.fc1.weight",
        "blocks.1.attn.proj.weight",
    ),
    Broken(
        CAV_MAE,
        sound.cav_mae_layout(96, own=3),
        ("pos_embed_a", "pos_embed_v", "modality_v", "blocks_u.0.norm2_v.bias"),
        "blocks_u.0.mlp.fc1.weight",
        "blocks_a.1.attn.qkv.weight",
    ),
    Broken(
        HAVIC,
        sound.havic_layout(96, 4),
        (
            "audio_encoder.pos_embed",
            "visual_encoder.pos_embedding.emb",
            "audio_encoder.norm.weight",
            "audio_encoder.modality",
        ),
        "visual_encoder.blocks.2.mlp.layers.0.linear.bias",
        "audio_encoder.blocks.3.attn.q_bias",
    ),
    Broken(
        MARLIN,
        picture.marlin_layout(TINY, TINY_DECODER),
        (
            "encoder.pos_embedding.emb",
            "encoder.norm.bias",
            "decoder.blocks.0.norm2.weight",
            "encoder.blocks.1.attn.q_bias",
        ),
        "encoder.blocks.3.attn.v_bias",
        "encoder.patch_embedding.projection.bias",
    ),
    Broken(
        VIDEOMAE,
        picture.videomae_layout(TINY, TINY_DECODER),
        ("decoder.head.bias", "encoder.norm.weight", "encoder.blocks.0.attn.v_bias", "encoder.blocks.2.norm1.bias"),
        "encoder.blocks.3.mlp.fc1.weight",
        "decoder.head.weight",
    ),
    Broken(
        VIDEOMAE,
        picture.videomae_hub_layout(TINY, TINY_DECODER),
        (
            "decoder.head.bias",
            "videomae.layernorm.weight",
            "videomae.encoder.layer.0.attention.attention.v_bias",
            "videomae.encoder.layer.2.output.dense.bias",
        ),
        "videomae.encoder.layer.3.intermediate.dense.weight",
        "videomae.encoder.layer.3.attention.attention.key.weight",
    ),
    Broken(
        MAE,
        picture.mae_layout(TINY),
        ("pos_embed", "patch_embed.proj.bias", "blocks.2.attn.qkv.bias", "norm.weight"),
        "blocks.3.mlp.fc1.weight",
        "blocks.0.attn.qkv.weight",
    ),
]


@pytest.mark.parametrize("broken", FILES, ids=lambda broken: f"{broken.source.name} {next(iter(broken.layout))}")
def test_six_wrong_keys_are_one_error(broken: Broken, tiny_config) -> None:
    shapes = dict(broken.layout)
    for name in broken.gone:
        del shapes[name]
    other = f"{broken.renamed}_"
    shapes[other] = shapes.pop(broken.renamed)
    first, *rest = expected = shapes[broken.misshapen]
    shapes[broken.misshapen] = (first + 1, *rest)
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError) as caught:
        convert(broken.source, weights, "x.pth", tiny_config(clip={"num_mel_bins": 128}))
    assert sorted(str(caught.value).splitlines()) == sorted(
        [
            *(f"x.pth: missing key {name}" for name in broken.gone),
            f"x.pth: missing key {broken.renamed} (nearest there: {other})",
            f"x.pth: key {broken.misshapen} has shape {[first + 1, *rest]}, expected {list(expected)}",
            f"x.pth: unexpected key {other} (nearest: {broken.renamed})",
        ]
    )


def test_a_block_without_any_key_is_told_key_by_key(tiny_config) -> None:
    weights = picture.blank(picture.vit_layout(TINY))
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.1.")}
    with pytest.raises(CheckpointError) as caught:
        convert(MAE, weights, "x.pth", tiny_config())
    lines = str(caught.value).splitlines()
    assert len(lines) == 12 and all(line.startswith("x.pth: missing key blocks.1.") for line in lines)


def test_a_key_that_fixes_sizes_is_told_with_what_was_found_before(tiny_config) -> None:
    """Nothing can stand in for the kernel that says how wide an encoder is."""
    weights = picture.blank(picture.videomae_layout(TINY, TINY_DECODER))
    del weights["encoder.norm.bias"], weights["encoder_to_decoder.weight"]
    with pytest.raises(CheckpointError) as caught:
        convert(VIDEOMAE, weights, "x.pth", tiny_config())
    assert [line.split(" (")[0] for line in str(caught.value).splitlines()] == [
        "x.pth: missing key encoder.norm.bias",
        "x.pth: missing key encoder_to_decoder.weight",
    ]
