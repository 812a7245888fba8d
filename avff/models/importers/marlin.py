"""MARLIN: VideoMAE trained on faces, the paper's start of the video encoder."""

import math

from torch import Tensor

from avff.config import Config
from avff.models.importers.blocks import encoder_size, fold_video_normalisation, leave_out, put_biased_block, put_layer
from avff.models.importers.source import Conversion, Shapes, Source, SourceKeys
from avff.models.importers.video import (
    TUBELET,
    VIDEO_GRID,
    fill_modality,
    put_decoder_entry,
    sinusoid_table,
    take_tubelet_embedding,
)

MLP = {"fc1": "mlp.layers.0.linear", "fc2": "mlp.layers.1.linear"}
"""What a block calls the two layers of its MLP."""

NO_DECODER = "the file holds the encoder alone; a .full.pt holds a decoder, too"

SAME_TABLE = 1e-3
"""Largest difference from the sinusoid that float32 explains: positions up to 1567 are angles in radians."""


def _start(shapes: Shapes) -> str:
    """Returns what every key begins with: files of the model hub hold the network as `marlin`."""
    return "marlin." if any(name.startswith("marlin.encoder.") for name in shapes) else ""


def _recognises(shapes: Shapes) -> bool:
    encoder = f"{_start(shapes)}encoder."
    return (
        shapes.get(f"{encoder}patch_embedding.projection.weight", ())[1:] == (3, *TUBELET)
        and f"{encoder}blocks.0.{MLP['fc1']}.weight" in shapes
    )


def _convert(keys: SourceKeys, config: Config) -> Conversion:
    conversion = Conversion(grids={"video": VIDEO_GRID}, layer_norm_eps={"video": 1e-5})
    start = _start(keys.shapes)
    _put_encoder(keys, conversion, f"{start}encoder.")
    if any(keys.names(f"{start}decoder.")):
        _put_decoder(keys, conversion, start)
    keys.drop(conversion, f"{start}discriminator.", "judges patches of raw pixels; critics here see normalised ones")
    leave_out(conversion, config, {"video_decoder.": NO_DECODER}, "the source is a model of pictures alone")
    conversion.notes.append("trained on face crops of 224 pixels, 16 frames, every second one of the video")
    return conversion


def _put_encoder(keys: SourceKeys, conversion: Conversion, theirs: str) -> None:
    layer, table = f"{theirs}patch_embedding.projection", f"{theirs}pos_embedding.emb"
    weight_DP, bias_D = take_tubelet_embedding(keys, layer)
    width, depth = len(weight_DP), keys.depth(f"{theirs}blocks.")
    encoder_size(width, depth, keys.where)
    weight_DP, bias_D = fold_video_normalisation(weight_DP, bias_D, math.prod(TUBELET))
    for kind, tensor in (("weight", weight_DP), ("bias", bias_D)):
        conversion.put(f"video_encoder.patch_embed.{kind}", tensor, f"{layer}.{kind}")
        conversion.folded[f"video_encoder.patch_embed.{kind}"] = "it reads RGB in [0, 1], not normalised"
    conversion.put("video_encoder.position_table", _take_table(keys, conversion, table, width), table)
    fill_modality(conversion, width)
    _put_stack(keys, conversion, "video_encoder.stack.", theirs, width)


def _put_decoder(keys: SourceKeys, conversion: Conversion, start: str) -> None:
    theirs = f"{start}decoder."
    width = put_decoder_entry(keys, conversion, f"{start}enc_dec_proj.weight", f"{theirs}mask_token")
    table = f"{theirs}pos_embedding.emb"
    conversion.put("video_decoder.position_table", _take_table(keys, conversion, table, width), table)
    _put_stack(keys, conversion, "video_decoder.stack.", theirs, width)
    why = "predicts raw RGB in [0, 1]; targets here have zero mean and unit variance per patch and colour"
    keys.drop(conversion, f"{theirs}head.", why)
    conversion.left_out["video_decoder.head."] = f"the source's {why}"


def _put_stack(keys: SourceKeys, conversion: Conversion, ours: str, theirs: str, width: int) -> None:
    for i in range(keys.depth(f"{theirs}blocks.")):
        put_biased_block(keys, conversion, f"{ours}blocks.{i}.", f"{theirs}blocks.{i}.", width, **MLP)
    put_layer(keys, conversion, f"{ours}norm", f"{theirs}norm", width)


def _take_table(keys: SourceKeys, conversion: Conversion, name: str, width: int) -> Tensor:
    """Returns a stored position table as it is, and notes where it is not the sinusoid that MARLIN stores."""
    table_1LD = keys.take(name, 1, math.prod(VIDEO_GRID), width).float()
    difference = (table_1LD - sinusoid_table(math.prod(VIDEO_GRID), width)).abs().max().item()
    if difference > SAME_TABLE:
        conversion.notes.append(f"{name} is up to {difference:.3g} away from the sinusoid; it was taken as it is")
    return table_1LD


MARLIN = Source(
    name="marlin",
    title="MARLIN, face videos (Cai et al., CVPR 2023), encoder or full file",
    licence="CC-BY-NC-4.0",
    non_commercial=True,
    url="https://github.com/ControlNet/MARLIN/blob/master/MODEL_ZOO.md",
    recognises=_recognises,
    convert=_convert,
)
