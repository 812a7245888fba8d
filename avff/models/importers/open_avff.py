"""Open-AVFF, stages 1 to 3: its encoders without loss, its decoders up to the heads."""

import math

import torch
from einops import rearrange

from avff.config import Config
from avff.models.detectors.open_avff_files import expected_shapes, open_avff_size, open_avff_stage
from avff.models.detectors.open_avff_parts import (
    AUDIO_GRID,
    LAYER_NORM_EPS,
    OPEN_AVFF_MEL,
    PATCH,
    TUBELET_FRAMES,
    VIDEO_GRID,
    WIDTH,
)
from avff.models.importers.blocks import put_block
from avff.models.importers.source import Conversion, Shapes, Source, SourceKeys
from avff.models.weights import check_keys

VIDEO_MLP = {"fc1": "mlp.layers.0.linear", "fc2": "mlp.layers.1.linear"}
NEVER_READ = "its forward pass never reads it"
OVER_THE_BATCH = (
    "its attention runs across the batch, its linear map mixes all slices at once, and what it calls slices of sound are "
    "mel bands"
)
ROW_TARGETS = (
    "predicts values normalised along whole rows (224 pixels, or one mel bin over the whole clip); targets here are "
    "normalised per patch"
)
CHANNEL_MEAN = "its head reads the mean over the channels of each token, ours pools tokens and keeps the channels"


def _recognises(shapes: Shapes) -> bool:
    return open_avff_stage(shapes) is not None


def _convert(keys: SourceKeys, config: Config) -> Conversion:
    stage = open_avff_stage(keys.shapes)
    assert stage is not None, "convert is called with what was recognised"
    check_keys(expected_shapes(stage, open_avff_size(keys.shapes)), keys.shapes, keys.where)
    conversion = Conversion(
        grids={"video": VIDEO_GRID, "audio": AUDIO_GRID[::-1]},
        patches={"video": (TUBELET_FRAMES, PATCH, PATCH), "audio": (PATCH, PATCH)},
        layer_norm_eps={"video": LAYER_NORM_EPS, "audio": LAYER_NORM_EPS},
        mel=OPEN_AVFF_MEL,
    )
    _put_audio_encoder(keys, conversion)
    _put_video_encoder(keys, conversion)
    if stage == "pretrain":
        _put_audio_decoder(keys, conversion)
        _put_video_decoder(keys, conversion)
    else:
        _leave_out_the_head(keys, conversion)
    for part in ("a2v.", "v2a."):
        keys.drop(conversion, part, OVER_THE_BATCH)
        conversion.left_out[part] = f"the source's cannot be carried over: {OVER_THE_BATCH}"
    conversion.left_out["temperature."] = "the source contrasts at a fixed temperature of 0.05"
    conversion.notes += [
        "trained on 16 frames spread over a whole file, whatever its length: how fast things move is new to it",
        "trained on the sound of a whole file, stretched to 1024 spectrogram frames: how long a sound lasts is new to it",
    ]
    return conversion


# ------------------------------------------------------------------------------------------- encoders


def _put_audio_encoder(keys: SourceKeys, conversion: Conversion) -> None:
    theirs, ours = "audio_encoder.", "audio_encoder."
    kernel = keys.take(f"{theirs}patch_embed.proj.weight")
    time_first = rearrange(kernel, "d 1 f t -> d (t f)")
    conversion.put(f"{ours}patch_embed.weight", time_first, f"{theirs}patch_embed.proj.weight, time first")
    _put(keys, conversion, f"{ours}patch_embed.bias", f"{theirs}patch_embed.proj.bias")
    frequency, time = AUDIO_GRID
    table = rearrange(keys.take(f"{theirs}pos_embed"), "one (f t) d -> one (t f) d", f=frequency, t=time)
    conversion.put(f"{ours}position_table", table, f"{theirs}pos_embed, time first")
    _put(keys, conversion, f"{ours}modality_embedding", f"{theirs}modality")
    _put_stack(keys, conversion, f"{ours}stack.", f"{theirs}transformer.", f"{theirs}norm", WIDTH)


def _put_video_encoder(keys: SourceKeys, conversion: Conversion) -> None:
    theirs, ours = "visual_encoder.", "video_encoder."
    kernel = f"{theirs}patch_embedding.projection"
    conversion.put(f"{ours}patch_embed.weight", keys.take(f"{kernel}.weight").flatten(1), f"{kernel}.weight")
    _put(keys, conversion, f"{ours}patch_embed.bias", f"{kernel}.bias")
    _put(keys, conversion, f"{ours}position_table", f"{theirs}pos_embedding.emb")
    conversion.fill(f"{ours}modality_embedding", torch.zeros(1, 1, WIDTH), "0: it has no such embedding of pictures")
    _put_stack(keys, conversion, f"{ours}stack.", f"{theirs}blocks.", f"{theirs}norm", WIDTH, **VIDEO_MLP)


# ------------------------------------------------------------------------------------------- decoders and head


def _put_audio_decoder(keys: SourceKeys, conversion: Conversion) -> None:
    theirs, ours = "audio_decoder.", "audio_decoder."
    width = len(keys.take(f"{theirs}decoder_embed.bias"))
    _put_layer(keys, conversion, f"{ours}embed", f"{theirs}decoder_embed")
    table = torch.zeros(1, math.prod(AUDIO_GRID), width)
    conversion.fill(f"{ours}position_table", table, "0: its decoder of sound adds no positions")
    _put_stack(keys, conversion, f"{ours}stack.", f"{theirs}blocks.", f"{theirs}decoder_norm", width)
    for name in ("decoder_modality", "decoder_pos_embed"):
        keys.drop(conversion, f"{theirs}{name}", NEVER_READ)
    _leave_out_output(keys, conversion, f"{ours}head.", f"{theirs}decoder_pred.")


def _put_video_decoder(keys: SourceKeys, conversion: Conversion) -> None:
    theirs, ours = "visual_decoder.", "video_decoder."
    width = len(keys.take(f"{theirs}decoder_patch_embed.bias"))
    _put_layer(keys, conversion, f"{ours}embed", f"{theirs}decoder_patch_embed")
    _put(keys, conversion, f"{ours}position_table", f"{theirs}pos_embedding.emb")
    _put_stack(keys, conversion, f"{ours}stack.", f"{theirs}blocks.", f"{theirs}norm", width, **VIDEO_MLP)
    keys.drop(conversion, f"{theirs}mask_token", NEVER_READ)
    _leave_out_output(keys, conversion, f"{ours}head.", f"{theirs}head.")


def _leave_out_output(keys: SourceKeys, conversion: Conversion, ours: str, theirs: str) -> None:
    keys.drop(conversion, theirs, ROW_TARGETS)
    conversion.left_out[ours] = f"the source's {ROW_TARGETS}"


def _leave_out_the_head(keys: SourceKeys, conversion: Conversion) -> None:
    for part in ("mlp_vision.", "mlp_audio.", "mlp_head."):
        keys.drop(conversion, part, CHANNEL_MEAN)
    for part in ("video_pool.", "audio_pool.", "video_head.", "audio_head.", "overall_head."):
        conversion.left_out[part] = CHANNEL_MEAN
    for part in ("video_decoder.", "audio_decoder."):
        conversion.left_out[part] = "a file of stage 3 holds no decoders; those of stages 1 and 2 do"


# ------------------------------------------------------------------------------------------- pieces


def _put(keys: SourceKeys, conversion: Conversion, ours: str, theirs: str) -> None:
    conversion.put(ours, keys.take(theirs), theirs)


def _put_layer(keys: SourceKeys, conversion: Conversion, ours: str, theirs: str) -> None:
    for kind in ("weight", "bias"):
        _put(keys, conversion, f"{ours}.{kind}", f"{theirs}.{kind}")


def _put_stack(
    keys: SourceKeys, conversion: Conversion, ours: str, blocks: str, norm: str, width: int, **names: str
) -> None:
    for index in range(keys.depth(blocks)):
        put_block(keys, conversion, f"{ours}blocks.{index}.", f"{blocks}{index}.", width, **names)
    _put_layer(keys, conversion, f"{ours}norm", norm)


OPEN_AVFF = Source(
    name="open-avff",
    title="Open-AVFF, stages 1 to 3 (github.com/JoeLeelyf/OpenAVFF, 2024)",
    licence="none stated",
    non_commercial=True,
    url="https://github.com/JoeLeelyf/OpenAVFF#readme",
    recognises=_recognises,
    convert=_convert,
)
