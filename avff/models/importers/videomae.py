"""VideoMAE: pretraining and finetuned files, under their own names and under those of the model hub."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from avff.config import Config
from avff.models.importers.blocks import (
    encoder_size,
    fill_token_norm,
    layer_shape,
    leave_out,
    put_biased_block,
    put_layer,
)
from avff.models.importers.source import Conversion, Shapes, Source, SourceKeys
from avff.models.importers.video import (
    TUBELET,
    VIDEO_GRID,
    fill_modality,
    put_decoder_entry,
    sinusoid_table,
    take_tubelet_embedding,
)

NO_DECODER = "the file holds no decoder; those of the pretraining do"
COMPUTED_TABLE = "its position table is computed, not stored: the 1-D sinusoid over 1568 tokens"


def _put_hub_block(keys: SourceKeys, conversion: Conversion, ours: str, theirs: str, width: int) -> None:
    """Maps a block of the model hub's code: query, key and value apart, and no bias of the key."""
    layers = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for own, their in layers.items():
        put_layer(keys, conversion, f"{ours}{own}", f"{theirs}{their}", *layer_shape(own, width))
    attention = f"{theirs}attention.attention."
    names = [f"{attention}{part}.weight" for part in ("query", "key", "value")]
    weight = torch.cat([keys.take(name, width, width) for name in names])
    conversion.put(f"{ours}attn.qkv.weight", weight, ", ".join(names))
    q, v = keys.take(f"{attention}q_bias", width), keys.take(f"{attention}v_bias", width)
    bias = torch.cat([q, torch.zeros_like(q), v])
    conversion.put(f"{ours}attn.qkv.bias", bias, f"{attention}q_bias, 0, {attention}v_bias")


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What one kind of file calls its layers; beginnings of keys end in a dot."""

    patch_embed: str
    blocks: str
    norm: str
    decoder_blocks: str
    classifier: str
    put_block: Callable[[SourceKeys, Conversion, str, str, int], None] = put_biased_block


_PRETRAINED = _Names(
    patch_embed="encoder.patch_embed.proj",
    blocks="encoder.blocks.",
    norm="encoder.norm",
    decoder_blocks="decoder.blocks.",
    classifier="head.",
)
_FINETUNED = _Names(
    patch_embed="patch_embed.proj",
    blocks="blocks.",
    norm="norm",
    decoder_blocks="decoder.blocks.",
    classifier="head.",
)
_HUB = _Names(
    patch_embed="videomae.embeddings.patch_embeddings.projection",
    blocks="videomae.encoder.layer.",
    norm="videomae.layernorm",
    decoder_blocks="decoder.decoder_layers.",
    classifier="classifier.",
    put_block=_put_hub_block,
)


def _names(shapes: Shapes) -> _Names | None:
    """Returns the names that the file uses; None where it is no VideoMAE."""
    for names in (_PRETRAINED, _FINETUNED, _HUB):
        is_video = shapes.get(f"{names.patch_embed}.weight", ())[1:] == (3, *TUBELET)
        if is_video and any(name.startswith(f"{names.blocks}0.") for name in shapes):
            return names
    return None


def _recognises(shapes: Shapes) -> bool:
    return _names(shapes) is not None


def _convert(keys: SourceKeys, config: Config) -> Conversion:
    conversion = Conversion(grids={"video": VIDEO_GRID}, layer_norm_eps={"video": 1e-6})
    names = _names(keys.shapes) or _PRETRAINED
    _put_encoder(keys, conversion, names)
    if any(keys.names("decoder.")):
        _put_decoder(keys, conversion, names)
    keys.drop(conversion, names.classifier, "classifies actions")
    leave_out(conversion, config, {"video_decoder.": NO_DECODER}, "the source is a model of pictures alone")
    return conversion


def _put_encoder(keys: SourceKeys, conversion: Conversion, names: _Names) -> None:
    weight_DP, bias_D = take_tubelet_embedding(keys, names.patch_embed)
    width, depth = len(weight_DP), keys.depth(names.blocks)
    encoder_size(width, depth, keys.where)
    for kind, tensor in (("weight", weight_DP), ("bias", bias_D)):
        conversion.put(f"video_encoder.patch_embed.{kind}", tensor, f"{names.patch_embed}.{kind}")
    table_1LD = sinusoid_table(math.prod(VIDEO_GRID), width)
    conversion.fill("video_encoder.position_table", table_1LD, COMPUTED_TABLE)
    fill_modality(conversion, width)
    for i in range(depth):
        names.put_block(keys, conversion, f"video_encoder.stack.blocks.{i}.", f"{names.blocks}{i}.", width)
    if "fc_norm.weight" in keys:
        fill_token_norm(keys, conversion, "video_encoder.", "fc_norm", width)
    else:
        put_layer(keys, conversion, "video_encoder.stack.norm", names.norm, width)


def _put_decoder(keys: SourceKeys, conversion: Conversion, names: _Names) -> None:
    width = put_decoder_entry(keys, conversion, "encoder_to_decoder.weight", "mask_token")
    table_1LD = sinusoid_table(math.prod(VIDEO_GRID), width)
    conversion.fill("video_decoder.position_table", table_1LD, COMPUTED_TABLE)
    for i in range(keys.depth(names.decoder_blocks)):
        names.put_block(keys, conversion, f"video_decoder.stack.blocks.{i}.", f"{names.decoder_blocks}{i}.", width)
    put_layer(keys, conversion, "video_decoder.stack.norm", "decoder.norm", width)
    values = 3 * math.prod(TUBELET)
    for kind, shape in (("weight", (values, width)), ("bias", (values,))):
        rows = _colour_first(keys.take(f"decoder.head.{kind}", *shape))
        conversion.put(f"video_decoder.head.{kind}", rows, f"decoder.head.{kind}, rows in our order")
    conversion.notes.append(
        "its head predicts patches normalised per colour as ours are, but by the unbiased variance: values 0.1 % smaller"
    )


def _colour_first(rows: Tensor) -> Tensor:
    """Reorders what a head predicts for a patch: (time, height, width, colour) becomes (colour, time, height, width)."""
    return rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


VIDEOMAE = Source(
    name="videomae",
    title="VideoMAE, action videos (Tong et al., NeurIPS 2022), pretrained or finetuned, own or model hub's names",
    licence="CC-BY-NC-4.0",
    non_commercial=True,
    url="https://github.com/MCG-NJU/VideoMAE/blob/main/MODEL_ZOO.md",
    recognises=_recognises,
    convert=_convert,
)
