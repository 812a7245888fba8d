"""What importers of audio encoders share: which axis of a patch and of a table is time."""

from einops import rearrange

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.importers.source import Conversion, SourceKeys

PATCH = (16, 16)
"""Mel frames and bins of a patch in every source here."""

MEL_ROWS = 8
"""Rows of tokens over frequency in every source here: 128 mel bins in patches of 16."""


def put_audio_patches(keys: SourceKeys, conversion: Conversion, theirs: str, *, bins_first: bool) -> int:
    """Maps the convolution that embeds patches of a spectrogram onto our linear layer.

    Args:
        theirs: beginning of its keys, ending in a dot.
        bins_first: its input is (mel, time); ours is (time, mel), within a patch, too.

    Returns:
        the width of the encoder.
    """
    weight_D1PP = keys.take(f"{theirs}weight", -1, 1, *PATCH)
    width = len(weight_D1PP)
    if bins_first:
        weight_D1PP = weight_D1PP.transpose(-1, -2)
    conversion.put("audio_encoder.patch_embed.weight", weight_D1PP.flatten(1), f"{theirs}weight")
    conversion.put("audio_encoder.patch_embed.bias", keys.take(f"{theirs}bias", width), f"{theirs}bias")
    return width


def put_mel_major_table(keys: SourceKeys, conversion: Conversion, theirs: str, width: int) -> None:
    """Maps a position table that goes through all of time before the next mel row; ours takes each time step whole.

    Raises:
        CheckpointError: a missing key, or rows that are no whole number of time steps.
    """
    table_1LD = keys.take(theirs, 1, -1, width, typical=512)
    time = mel_time_steps(table_1LD.shape[1], theirs, keys)
    table_1LD = rearrange(table_1LD, "one (f t) d -> one (t f) d", f=MEL_ROWS)
    conversion.put("audio_encoder.position_table", table_1LD, theirs)
    conversion.grids["audio"] = (time, MEL_ROWS)


def mel_time_steps(num_tokens: int, name: str, keys: SourceKeys) -> int:
    """Returns the tokens along time of a table over `MEL_ROWS` rows; CheckpointError where they do not divide."""
    if num_tokens % MEL_ROWS:
        raise CheckpointError(
            f"{keys.where}: {name} has {num_tokens} positions of patches, no multiple of its {MEL_ROWS} mel rows; "
            "files with overlapping patches cannot be converted"
        )
    return num_tokens // MEL_ROWS


def note_time_scale(conversion: Conversion, config: Config, source_ms: float) -> None:
    """Notes where a mel frame lasts another time than the source was trained on."""
    ours_ms = 1000 * config.clip.hop_samples / config.clip.sample_rate_hz
    if ours_ms != source_ms:
        conversion.notes.append(
            f"its mel frames are {source_ms:g} ms apart, the target's {ours_ms:g} ms: the same weights hear time "
            f"stretched by {source_ms / ours_ms:.3g}"
        )
