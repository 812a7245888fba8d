"""The nouns that rooms hand each other, with shapes and dtypes.

NamedTuples, not dataclasses: what pins their memory and DeepSpeed's ZeRO-3 hooks walk tuples.

Shape suffixes, one legend for the project: `B` batch, `C` colour channels, `T` video frames, `H W` pixels,
`N` audio samples, `M` spectrogram frames, `F` mel bins, `L` tokens, `S` slices, `K` tokens kept, `D` width.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

UNKNOWN = -1
"""Label value of a clip whose truth is not known; its loss term is masked out."""


class Clip(NamedTuple):
    """One aligned audio-video window of one sample, as a loader worker cuts it.

    Attributes:
        key: sample key in its shard directory.
        track: face track id, or -1 for the whole frame.
        start_seconds: where the window starts inside the stored sample; it ends `clip.duration_seconds` later.
        seed: 63 bits that decide every later random choice about this clip.
        video_THWC: uint8, at the stored size (square crops for faces).
        waveform_N: float32 in [-1, 1], mono, cut to the same window.
        is_fake, video_is_fake, audio_is_fake: 0 real, 1 fake, UNKNOWN.
    """

    key: str
    track: int
    start_seconds: float
    seed: int
    video_THWC: np.ndarray
    waveform_N: np.ndarray
    is_fake: int
    video_is_fake: int
    audio_is_fake: int


class AVBatch(NamedTuple):
    """Clips stacked by the loader, still raw; `avff.preprocess` makes model inputs of it on the device.

    Attributes:
        keys: sample keys, in batch order.
        tracks: face track id per clip, -1 for the whole frame.
        start_seconds_B: float64.
        seed_B: int64, one per clip.
        video_BTHWC: uint8.
        waveform_BN: float32 in [-1, 1].
        is_fake_B, video_is_fake_B, audio_is_fake_B: int64; 0 real, 1 fake, UNKNOWN (-1).
    """

    keys: tuple[str, ...]
    tracks: tuple[int, ...]
    start_seconds_B: Tensor
    seed_B: Tensor
    video_BTHWC: Tensor
    waveform_BN: Tensor
    is_fake_B: Tensor
    video_is_fake_B: Tensor
    audio_is_fake_B: Tensor


class ModelInputs(NamedTuple):
    """What a model reads: normalised, augmented in training, on the device.

    Attributes:
        video_BTCHW: float32, ImageNet-normalised.
        mel_BMF: float32, time-major log-mel, normalised by `clip.mel_mean` and `clip.mel_std`.
        seed_B: int64, one per clip; masks and dropout hash it.
        is_fake_B, video_is_fake_B, audio_is_fake_B: int64; 0 real, 1 fake, UNKNOWN (-1).
    """

    video_BTCHW: Tensor
    mel_BMF: Tensor
    seed_B: Tensor
    is_fake_B: Tensor
    video_is_fake_B: Tensor
    audio_is_fake_B: Tensor
