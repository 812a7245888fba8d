"""HAVIC (Peng et al., CVPR 2026 Findings): the nearest public relative of AVFF, pretrained on faces that speak (LRS2).

Two ViTs, the video encoder like MARLIN's and the audio encoder like AudioMAE's, each with a class token per one of
eight segments. Published are a pretraining file (`HAVIC_PT`) and one finetuned on FakeAVCeleb (`HAVIC_FT`).

What carries over: both encoders, patches, positions, blocks and norms. Its frames are RGB in [0, 1] and ours are
normalised, which is folded into the patch embedding. Its spectrogram enters as (mel, time) and its audio tokens go
through all of time before the next mel row; kernel, table and order are turned to ours.

What does not carry over:

- the class tokens (and their fixed positions). Every patch attends to them, so without them tokens come out a little
  different (see the note);
- everything after the encoders that is made for its segments of sound. Each is 64 tokens in a row, which in its order
  is one band of 16 mel bins over the whole clip, not a run of time: `A2V`, `V2A` and the interaction module pair
  moments of the picture with bands of pitch;
- the decoders, which read encoder layers 3, 6, 9 and 12 by cross-attention, and the heads on pooled layers.

Its start from AudioMAE lost much: the kernel was loaded for the other axis order, the biases of q, k and v were
dropped for want of keys. What is converted here is what its training then made of that, so nothing is to be repaired.

Source:
    github.com/tuffy-studio/HAVIC (src/models, weights, scripts), read in several revisions, which differ in one name
    (`cls_pos_embed`, earlier `time_pos_embed`) and in keys of the decoders. The published files
    themselves were not at hand: names and shapes are those of its code.

Licence:
    The repository says MIT. Its weights began as MARLIN's (CC-BY-NC-4.0) and AudioMAE's (CC-BY-NC-4.0) and are
    therefore treated as non-commercial.
"""

import math

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.importers.blocks import encoder_size, fold_video_normalisation, leave_out, put_biased_block, put_layer
from avff.models.importers.sound import put_audio_patches, put_mel_major_table
from avff.models.importers.source import Conversion, Shapes, Source, SourceKeys
from avff.models.importers.video import TUBELET, fill_modality, take_tubelet_embedding

LAYER_NORM_EPS = 1e-5
"""torch's default, which its plain `nn.LayerNorm` leaves alone."""
MEL = (-6.9960, 3.1205)
"""Of its training scripts and its inference; the defaults of its pretraining code, -5.081 and 4.4849, are not used."""

SEGMENTS = "class tokens of eight segments, which our encoders have no place for"
MEL_BANDS = "its segments of sound are mel bands over the whole clip, not runs of time"
DECODERS = "reads four encoder layers by cross-attention; our decoder reads the last one and starts anew"
HEADS = "reads pools of four encoder layers, which our heads do not have"
DROPPED = {
    "audio_encoder.cls_tokens": SEGMENTS,
    "audio_encoder.cls_pos_embed": SEGMENTS,
    "audio_encoder.time_pos_embed": SEGMENTS,
    "visual_encoder.cls_pos_embed": SEGMENTS,
    "visual_encoder.time_pos_embed": SEGMENTS,
    "audio_decoder.": DECODERS,
    "visual_decoder.": DECODERS,
    "A2V.": MEL_BANDS,
    "V2A.": MEL_BANDS,
    "AudioVisualInteractionModule.": MEL_BANDS,
    "AudioTokenReducer_": HEADS,
    "VisualTokenReducer_": HEADS,
    "pool_a.": HEADS,
    "pool_v.": HEADS,
    "classifier.": HEADS,
    "classifier_audio.": HEADS,
    "classifier_visual.": HEADS,
}
LEFT_OUT = {
    "audio_decoder.": DECODERS,
    "video_decoder.": DECODERS,
    "a2v.": MEL_BANDS,
    "v2a.": MEL_BANDS,
    "temperature.": "a constant there, 0.07",
}
WITHOUT_CLASS_TOKENS = (
    "its eight class tokens per modality are left out: the other tokens then agree with its own to a cosine of 0.9999 "
    "where the weights are random; how much trained ones weigh is not known here"
)
STRETCHED = (
    "its sound is a spectrogram of 10 ms per frame, stretched to 1024 frames by interpolation whatever the clip lasts; "
    "ours is computed at the target's hop"
)


def _recognises(shapes: Shapes) -> bool:
    return {
        "audio_encoder.patch_embed.proj.weight",
        "audio_encoder.cls_tokens",
        "visual_encoder.patch_embedding.projection.weight",
        "visual_encoder.cls_tokens",
    } <= set(shapes)


def _convert(keys: SourceKeys, config: Config) -> Conversion:
    conversion = Conversion(mel=MEL, layer_norm_eps={"audio": LAYER_NORM_EPS, "video": LAYER_NORM_EPS})
    _put_audio_encoder(keys, conversion)
    _put_video_encoder(keys, conversion)
    for prefix, why in DROPPED.items():
        keys.drop(conversion, prefix, why)
    conversion.notes += [WITHOUT_CLASS_TOKENS, STRETCHED]
    leave_out(conversion, config, LEFT_OUT, HEADS)
    return conversion


def _put_audio_encoder(keys: SourceKeys, conversion: Conversion) -> None:
    theirs, ours = "audio_encoder.", "audio_encoder."
    width = put_audio_patches(keys, conversion, f"{theirs}patch_embed.proj.", bins_first=True)
    put_mel_major_table(keys, conversion, f"{theirs}pos_embed", width)
    conversion.put(f"{ours}modality_embedding", keys.take(f"{theirs}modality", 1, 1, width), f"{theirs}modality")
    depth = keys.depth(f"{theirs}blocks.")
    encoder_size(width, depth, keys.where)
    for n in range(depth):
        put_biased_block(keys, conversion, f"{ours}stack.blocks.{n}.", f"{theirs}blocks.{n}.", width)
    put_layer(keys, conversion, f"{ours}stack.norm", f"{theirs}norm", width)


def _put_video_encoder(keys: SourceKeys, conversion: Conversion) -> None:
    theirs, ours = "visual_encoder.", "video_encoder."
    width = _put_video_patches(keys, conversion)
    _put_video_table(keys, conversion, width)
    fill_modality(conversion, width)
    depth = keys.depth(f"{theirs}blocks.")
    encoder_size(width, depth, keys.where)
    mlp = {"fc1": "mlp.layers.0.linear", "fc2": "mlp.layers.1.linear"}
    for n in range(depth):
        put_biased_block(keys, conversion, f"{ours}stack.blocks.{n}.", f"{theirs}blocks.{n}.", width, **mlp)
    put_layer(keys, conversion, f"{ours}stack.norm", f"{theirs}norm", width)


def _put_video_patches(keys: SourceKeys, conversion: Conversion) -> int:
    """Maps the tubelet embedding, lets it read ImageNet-normalised frames, and returns the encoder's width."""
    theirs = "visual_encoder.patch_embedding.projection"
    weight_DP, bias_D = take_tubelet_embedding(keys, theirs)
    weight_DP, bias_D = fold_video_normalisation(weight_DP, bias_D, math.prod(TUBELET))
    for kind, tensor in (("weight", weight_DP), ("bias", bias_D)):
        name = f"video_encoder.patch_embed.{kind}"
        conversion.put(name, tensor, f"{theirs}.{kind}")
        conversion.folded[name] = "it reads RGB in [0, 1], not normalised"
    return len(weight_DP)


def _put_video_table(keys: SourceKeys, conversion: Conversion, width: int) -> None:
    """Copies the fixed table; one class token per time step tells how many there are."""
    name = "visual_encoder.pos_embedding.emb"
    table_1LD = keys.take(name, 1, -1, width, typical=1568)
    time = keys.take("visual_encoder.cls_tokens", 1, -1, width, typical=8).shape[1]
    conversion.dropped["visual_encoder.cls_tokens"] = SEGMENTS
    side = math.isqrt(table_1LD.shape[1] // time)
    if time * side**2 != table_1LD.shape[1]:
        raise CheckpointError(f"{keys.where}: {name} has {table_1LD.shape[1]} positions, not {time} times a square")
    conversion.put("video_encoder.position_table", table_1LD, name)
    conversion.grids["video"] = (time, side, side)


HAVIC = Source(
    name="havic",
    title="HAVIC, LRS2 and FakeAVCeleb (Peng et al., CVPR 2026 Findings, arXiv 2603.23960)",
    licence="MIT; began as MARLIN's and AudioMAE's weights, CC-BY-NC-4.0",
    non_commercial=True,
    url="https://huggingface.co/JielunPeng/HAVIC",
    recognises=_recognises,
    convert=_convert,
)
