"""CAV-MAE (Gong et al., ICLR 2023): one picture and 10.24 s of sound, pretrained on AudioSet-2M.

Two towers of 11 blocks and one block that both share, which has norms of its own for each modality; every tower
becomes one of our encoders, the shared block copied into both. Published are pretraining files (with a decoder) and
finetuned ones (with `mlp_head`).

Sound: its kernel is (mel, time) and its tokens go through all of time before the next mel row; both are turned to
ours, so that our tokens are its tokens in another order. Its table was made for its own grid and may be interpolated.

Picture: it sees one frame, already normalised by ImageNet's statistics. Its kernel is spread over the frames of a
tubelet and divided by their number, its table repeated over time, so that a still clip gives its tokens at each time
step before the first block. All time steps then attend to each other; as equal tokens do not change a mean, a still
clip's tokens are exactly those of its picture.

What does not carry over: the shared block's third pair of norms and the norm after it, of the pass over both
modalities at once; norms of a modality in blocks that never use them; the decoder (8 blocks 512 wide, one for both
modalities); the classifier.

Source:
    github.com/YuanGongND/cav-mae (src/models/cav_mae.py, src/dataloader.py, egs/audioset).

Licence:
    The repository is BSD-2-Clause. Its weights began as ImageNet-MAE's (src/adapt_vmae_weights.py), which are
    CC-BY-NC-4.0, and are therefore treated as non-commercial.
"""

import math

from avff.config import Config, Modality
from avff.errors import CheckpointError
from avff.models.importers.blocks import encoder_size, leave_out, put_biased_block, put_layer
from avff.models.importers.sound import note_time_scale, put_audio_patches, put_mel_major_table
from avff.models.importers.source import Conversion, Shapes, Source, SourceKeys
from avff.models.importers.video import TUBELET

LAYER_NORM_EPS = 1e-5
"""torch's default, which its `norm_layer=nn.LayerNorm` leaves alone."""
MEL = (-5.081, 4.4849)
MEL_FRAME_MS = 10.0
LETTERS: dict[Modality, str] = {"audio": "a", "video": "v"}

DECODER = "a decoder 512 wide for both modalities at once; ours are one each and start anew"
JOINT = "of its pass over both modalities at once, which our encoders do not have"
UNUSED = "never used: only the shared block has norms per modality"
LEFT_OUT = {"audio_decoder.": DECODER, "video_decoder.": DECODER, "temperature.": "a constant there, 0.05"}
FINETUNED = (
    "a finetuned file: after both modalities together, the shared block's norms per modality are still those of "
    "pretraining; after sound alone, the whole video encoder is"
)


def _recognises(shapes: Shapes) -> bool:
    return {"patch_embed_a.proj.weight", "patch_embed_v.proj.weight", "blocks_u.0.norm1_a.weight"} <= set(shapes)


def _convert(keys: SourceKeys, config: Config) -> Conversion:
    conversion = Conversion(mel=MEL, layer_norm_eps={"audio": LAYER_NORM_EPS, "video": LAYER_NORM_EPS})
    width = put_audio_patches(keys, conversion, "patch_embed_a.proj.", bins_first=True)
    put_mel_major_table(keys, conversion, "pos_embed_a", width)
    _put_picture_patches(keys, conversion, width)
    _put_picture_table(keys, conversion, config, width)
    for modality in LETTERS:
        _put_tower(keys, conversion, modality, width)
    for n in range(keys.depth("blocks_u.")):
        for norm in ("norm1", "norm2"):
            keys.drop(conversion, f"blocks_u.{n}.{norm}.", JOINT)
    keys.drop(conversion, "norm.", JOINT)
    keys.drop(conversion, "mask_token", DECODER)
    keys.drop(conversion, "decoder_", DECODER)
    keys.drop(conversion, "mlp_head.", "the classifier of sound events")
    conversion.notes.append("an image model: motion within a tubelet is averaged until training tells its frames apart")
    if any(name.startswith("mlp_head.") for name in conversion.dropped):
        conversion.notes.append(FINETUNED)
    note_time_scale(conversion, config, MEL_FRAME_MS)
    leave_out(conversion, config, LEFT_OUT, "it predicts no modality from the other, and its classifier is of sounds")
    return conversion


def _put_tower(keys: SourceKeys, conversion: Conversion, modality: Modality, width: int) -> None:
    """Maps a modality's own blocks and its way through the shared ones."""
    letter = LETTERS[modality]
    own, shared = keys.depth(f"blocks_{letter}."), keys.depth("blocks_u.")
    encoder_size(width, own + shared, keys.where)
    ours = f"{modality}_encoder."
    for n in range(own):
        theirs = f"blocks_{letter}.{n}."
        put_biased_block(keys, conversion, f"{ours}stack.blocks.{n}.", theirs, width, bias="qkv.bias")
        for norm in ("norm1_a", "norm1_v", "norm2_a", "norm2_v"):
            keys.drop(conversion, f"{theirs}{norm}.", UNUSED)
    for n in range(shared):
        names = {"bias": "qkv.bias", "norm1": f"norm1_{letter}", "norm2": f"norm2_{letter}"}
        put_biased_block(keys, conversion, f"{ours}stack.blocks.{own + n}.", f"blocks_u.{n}.", width, **names)
    _part_from_shared(conversion, f"{ours}stack.blocks.")
    put_layer(keys, conversion, f"{ours}stack.norm", f"norm_{letter}", width)
    theirs = f"modality_{letter}"
    conversion.put(f"{ours}modality_embedding", keys.take(theirs, 1, 1, width), theirs)


def _part_from_shared(conversion: Conversion, ours: str) -> None:
    """Gives both encoders memory of their own for what they take from one block: files refuse aliased tensors."""
    for name, made_of in conversion.made_of.items():
        if name.startswith(ours) and made_of.startswith("blocks_u."):
            conversion.tensors[name] = conversion.tensors[name].clone()


def _put_picture_patches(keys: SourceKeys, conversion: Conversion, width: int) -> None:
    """Spreads the kernel of a picture over the frames of a tubelet, so that equal frames give the picture's token."""
    frames, *side = TUBELET
    kernel_DCHW = keys.take("patch_embed_v.proj.weight", width, 3, *side)
    weight_DP = kernel_DCHW[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1) / frames
    made_of = f"patch_embed_v.proj.weight / {frames}, once per frame of a tubelet"
    conversion.put("video_encoder.patch_embed.weight", weight_DP, made_of)
    bias = "patch_embed_v.proj.bias"
    conversion.put("video_encoder.patch_embed.bias", keys.take(bias, width), bias)


def _put_picture_table(keys: SourceKeys, conversion: Conversion, config: Config, width: int) -> None:
    """Repeats the picture's positions at every time step of the target."""
    table_1LD = keys.take("pos_embed_v", 1, -1, width, typical=196)
    side = math.isqrt(table_1LD.shape[1])
    if side**2 != table_1LD.shape[1]:
        raise CheckpointError(f"{keys.where}: pos_embed_v has {table_1LD.shape[1]} positions, not those of a square")
    time = config.clip.num_frames // TUBELET[0]
    conversion.put(
        "video_encoder.position_table", table_1LD.repeat(1, time, 1), f"pos_embed_v at each of {time} time steps"
    )
    conversion.grids["video"] = (time, side, side)


CAV_MAE = Source(
    name="cav_mae",
    title="CAV-MAE, AudioSet-2M or VGGSound (Gong et al., ICLR 2023, arXiv 2210.07839)",
    licence="BSD-2-Clause; began as ImageNet-MAE's weights, CC-BY-NC-4.0",
    non_commercial=True,
    url="https://github.com/YuanGongND/cav-mae",
    recognises=_recognises,
    convert=_convert,
)
