"""AudioMAE (Huang et al., NeurIPS 2022): a ViT over log-mel patches of 10.24 s, pretrained on AudioSet-2M.

Published are the pretraining file (with a decoder of 16 Swin blocks), one finetuned on AudioSet (with a head, and
`fc_norm` in the place of `norm`), and mirrors of both for timm, under the same names and without container.

What carries over: patch embedding, positions and all blocks, as they are, and the final norm of pretraining. Its input
is (time, mel) and its tokens are time-major, both like ours. What does not:

- the class token. No token of ours is computed with it, so the others come out a little different (see the note);
- the decoder, whose attention is windowed;
- the classifier of AudioSet's 527 events.

The position table is copied, never computed: AudioMAE fills it for a grid of 8 x 64, the axes the wrong way round, and
then trains with tokens in rows of 8. A row of the table is tied to its token by training alone, not by where the
token lies, so that the table cannot be interpolated: a shorter clip takes its first rows, a longer one is refused.

Source:
    github.com/facebookresearch/AudioMAE (models_mae.py, models_vit.py, main_pretrain.py). The
    README of the repository says CC-BY 4.0, its LICENSE file CC-BY-NC 4.0; the stricter one counts here.
"""

from avff.config import Config
from avff.models.importers.blocks import encoder_size, fill_token_norm, leave_out, put_biased_block, put_layer
from avff.models.importers.sound import (
    MEL_ROWS,
    mel_time_steps,
    note_time_scale,
    put_audio_patches,
)
from avff.models.importers.source import Conversion, Shapes, Source, SourceKeys

LAYER_NORM_EPS = 1e-6
MEL = (-4.2677393, 2 * 4.5689974)
"""It divides by twice the standard deviation of AudioSet."""
MEL_FRAME_MS = 10.0
NUM_POSITIONS = 513
"""Of the published files: the class token's, and those of 64 x 8 patches."""

CLASS_TOKEN = "a class token, which our encoder has no place for"
WITHOUT_CLASS_TOKEN = (
    "its class token is left out: the other tokens then agree with its own to a cosine of 0.9999 where the weights are "
    "random; how much a trained one weighs is not known here"
)
NO_DECODER = (
    "without a decoder no key shows that it is AudioMAE's: its statistics, its (time, mel) input and its order of tokens "
    "are assumed; other ViTs of sound, such as AST, have others"
)
WRONG_GRID = "AudioMAE made its positions for a grid of 8 x 64 and trained them on one of 64 x 8"
DECODER = "windowed (Swin) attention 512 wide; our decoder attends to all tokens and starts anew"


def _recognises(shapes: Shapes) -> bool:
    kernel = shapes.get("patch_embed.proj.weight", ())
    one_channel = len(kernel) == 4 and kernel[1] == 1
    return one_channel and {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= set(shapes)


def _convert(keys: SourceKeys, config: Config) -> Conversion:
    conversion = Conversion(mel=MEL, layer_norm_eps={"audio": LAYER_NORM_EPS})
    width = put_audio_patches(keys, conversion, "patch_embed.proj.", bins_first=False)
    depth = keys.depth("blocks.")
    encoder_size(width, depth, keys.where)
    _put_table(keys, conversion, width)
    for n in range(depth):
        put_biased_block(keys, conversion, f"audio_encoder.stack.blocks.{n}.", f"blocks.{n}.", width, bias="qkv.bias")
    _put_final_norm(keys, conversion, width)
    keys.drop(conversion, "cls_token", CLASS_TOKEN)
    keys.drop(conversion, "mask_token", DECODER)
    keys.drop(conversion, "decoder_", DECODER)
    keys.drop(conversion, "head.", "the classifier of AudioSet's sound events")
    conversion.notes.append(WITHOUT_CLASS_TOKEN)
    if not any(keys.names("decoder_")):
        conversion.notes.append(NO_DECODER)
    note_time_scale(conversion, config, MEL_FRAME_MS)
    leave_out(conversion, config, {"audio_decoder.": DECODER}, "a model of sound alone")
    return conversion


def _put_table(keys: SourceKeys, conversion: Conversion, width: int) -> None:
    """Copies the rows of all tokens and leaves the class token's, row 0, behind."""
    table_1LD = keys.take("pos_embed", 1, -1, width, typical=NUM_POSITIONS)
    num_tokens = table_1LD.shape[1] - 1
    conversion.grids["audio"] = (mel_time_steps(num_tokens, "pos_embed", keys), MEL_ROWS)
    conversion.put("audio_encoder.position_table", table_1LD[:, 1:], f"pos_embed, rows 1 to {num_tokens}")
    conversion.fixed_tables["audio_encoder.position_table"] = WRONG_GRID
    conversion.fill("audio_encoder.modality_embedding", table_1LD.new_zeros(1, 1, width), "0: it has no such embedding")


def _put_final_norm(keys: SourceKeys, conversion: Conversion, width: int) -> None:
    """Maps `norm`, which a finetuned file does not have: there `fc_norm` came after the mean over tokens."""
    if "fc_norm.weight" in keys:
        fill_token_norm(keys, conversion, "audio_encoder.", "fc_norm", width)
    else:
        put_layer(keys, conversion, "audio_encoder.stack.norm", "norm", width)


AUDIOMAE = Source(
    name="audiomae",
    title="AudioMAE ViT, AudioSet-2M (Huang et al., NeurIPS 2022, arXiv 2207.06405)",
    licence="CC-BY-NC-4.0",
    non_commercial=True,
    url="https://github.com/facebookresearch/AudioMAE",
    recognises=_recognises,
    convert=_convert,
)
