"""What Open-AVFF looks at: 16 frames and the whole sound of a file, however long it is."""

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchaudio.compliance import kaldi

from avff.data.decode import decode_frames, decode_sound
from avff.data.samples import Sample
from avff.models.detectors.open_avff_parts import IMAGE_SIZE, NUM_FRAMES, NUM_MEL_BINS, NUM_MEL_FRAMES, OPEN_AVFF_MEL

FrameFit = Literal["crop", "resize"]
"""How a frame becomes a square of 224 pixels. `crop` cuts it from the centre and pads what is smaller with black, as
Open-AVFF's evaluation does; `resize` squeezes the whole frame, as its training does. Frames of 224 x 224 are the same."""
FITS: tuple[FrameFit, ...] = get_args(FrameFit)

HOP_SECONDS, WINDOW_SECONDS = 0.010, 0.025
_BLOCK_FRAMES = 6000
"""Spectrogram frames computed at a time, so that an hour of sound fits into memory."""


class OpenAvffClip(NamedTuple):
    """One file, or one track of a stored sample.

    Attributes:
        track: face track id, or -1 for the whole frame.
        start_seconds: where the track starts inside the stored sample.
        video_THWC: uint8, (16, 224, 224, 3).
        mel_MF: float32, (1024, 128), normalised.
        waveform_N: float32 in [-1, 1], at the stored rate.
    """

    key: str
    track: int
    start_seconds: float
    video_THWC: np.ndarray
    mel_MF: Tensor
    waveform_N: np.ndarray


class OpenAvffView:
    """Open-AVFF's look at stored samples: one clip per face track, or of the whole frame, from its start to its end."""

    def __init__(self, fit: FrameFit):
        self.fit = fit

    def evaluation_clips(self, sample: Sample) -> list[OpenAvffClip]:
        """Returns a clip per track; none where face or sound is missing, or the sound is shorter than one window."""
        metadata, audio = sample.metadata, sample.metadata.audio
        if metadata.status != ["OK"]:
            return []
        sound_N = decode_sound(
            sample.members["flac"], audio.num_samples, audio.sample_rate_hz, f"sample {metadata.key!r}: flac"
        )
        whole = [("frame.mp4", -1, 0, metadata.video.num_frames)]
        tracks = [(f"face{track.id}.mp4", track.id, track.first_frame, track.num_frames) for track in metadata.tracks]
        clips = []
        for member, track, first_frame, num_frames in tracks or whole:
            edges_seconds = [first_frame / metadata.video.fps, (first_frame + num_frames) / metadata.video.fps]
            first, last = (round(seconds * audio.sample_rate_hz) for seconds in edges_seconds)
            mel_MF = whole_mel(sound_N[None, first:last], audio.sample_rate_hz)
            if mel_MF is None:
                continue
            needed, place = np.unique(spread_frames(num_frames), return_inverse=True)
            frames = decode_frames(sample.members[member], needed, num_frames, f"sample {metadata.key!r}: {member}")
            video_THWC = np.stack([fit_frame(frame_HWC, self.fit) for frame_HWC in frames])[place]
            clips.append(OpenAvffClip(metadata.key, track, edges_seconds[0], video_THWC, mel_MF, sound_N[first:last]))
        return clips


def spread_frames(num_frames: int) -> np.ndarray:
    """Returns 16 indices from the first to the last of `num_frames`, evenly spread; a few frames come repeatedly."""
    return np.linspace(0, num_frames - 1, NUM_FRAMES).astype(np.int64)


def fit_frame(frame_HWC: np.ndarray, fit: FrameFit) -> np.ndarray:
    """Returns a uint8 square of 224 pixels; see `FrameFit`."""
    if fit == "resize":
        return np.asarray(Image.fromarray(frame_HWC).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
    missing = [max(0, IMAGE_SIZE - side) for side in frame_HWC.shape[:2]]
    padded_HWC = np.pad(frame_HWC, [*((one // 2, one - one // 2) for one in missing), (0, 0)])
    top, left = (round((side - IMAGE_SIZE) / 2) for side in padded_HWC.shape[:2])
    return padded_HWC[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]


def whole_mel(samples_CN: np.ndarray, rate_hz: int) -> Tensor | None:
    """Returns a normalised log-mel spectrogram of the first channel, stretched or squeezed to 1024 frames.

    Args:
        samples_CN: float32 in [-1, 1], at the file's own rate.

    Returns:
        float32, (1024, 128); None where the sound is shorter than one window.
    """
    hop, window = int(rate_hz * HOP_SECONDS), int(rate_hz * WINDOW_SECONDS)
    num_frames = 1 + (samples_CN.shape[1] - window) // hop
    if num_frames < 1:
        return None
    first_N = torch.from_numpy(samples_CN[0] - samples_CN.mean(dtype=np.float64).astype(np.float32))
    blocks = [
        kaldi.fbank(
            first_N[None, start * hop : (min(start + _BLOCK_FRAMES, num_frames) - 1) * hop + window],
            sample_frequency=rate_hz,
            num_mel_bins=NUM_MEL_BINS,
            window_type="hanning",
            frame_length=1000 * WINDOW_SECONDS,
            frame_shift=1000 * HOP_SECONDS,
            htk_compat=True,
            use_energy=False,
            dither=0.0,
        )
        for start in range(0, num_frames, _BLOCK_FRAMES)
    ]
    stretched_MF = F.interpolate(torch.cat(blocks).T[None], size=NUM_MEL_FRAMES, mode="linear")[0].T
    mean, deviation = OPEN_AVFF_MEL
    return ((stretched_MF - mean) / deviation).contiguous()
