"""Raw clips in, model inputs out: the one place for training, evaluation and prediction alike.

Everything runs on the device of the batch, as a few matrix products for all clips at once. Random choices are
hashes of each clip's own seed, so a clip looks the same whatever else is in its batch.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from avff import seeding
from avff.batch import AVBatch, ModelInputs
from avff.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, ClipConfig
from avff.errors import ConfigError

POWER_FLOOR = 2.0**-23
"""Added to mel power before the logarithm; Kaldi's floor, about -69 dB of a full-scale sine's frame power."""


class CropBox(NamedTuple):
    """A square of the stored frame, in pixels; `flip_B` mirrors it left to right.

    Attributes:
        top_B, left_B, side_B: float32; fractions of a pixel are meant.
        flip_B: bool.
    """

    top_B: Tensor
    left_B: Tensor
    side_B: Tensor
    flip_B: Tensor


class Preprocess:
    """Makes `ModelInputs` of an `AVBatch`.

    Args:
        clip: geometry and normalisation of the clip.
        augment: training-time changes; evaluation applies none of them.
    """

    def __init__(self, clip: ClipConfig, augment: AugmentConfig):
        self.clip = clip
        self.augment = augment
        self._window_N = torch.hann_window(clip.window_samples)
        self._filters_GF = mel_filters(clip)
        self._mean_C11 = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        self._std_C11 = torch.tensor(IMAGENET_STD).view(3, 1, 1)

    def __call__(self, batch: AVBatch, *, training: bool) -> ModelInputs:
        """Augments (in training), resizes and normalises video; turns sound into a normalised log-mel.

        Raises:
            ConfigError: the batch's frames or samples are not those of `clip`.
        """
        self._check(batch)
        self._move_tables(batch.video_BTHWC.device)
        seed_B = batch.seed_B
        return ModelInputs(
            video_BTCHW=self._video(batch.video_BTHWC, seed_B if training else None),
            mel_BMF=self._mel(batch.waveform_BN, seed_B if training else None),
            seed_B=seed_B,
            is_fake_B=batch.is_fake_B,
            video_is_fake_B=batch.video_is_fake_B,
            audio_is_fake_B=batch.audio_is_fake_B,
        )

    def _move_tables(self, device: torch.device) -> None:
        """Copies constants to the device once: to copy numbers to a GPU is to wait for all that is queued there."""
        if self._window_N.device != device:
            self._window_N, self._filters_GF = self._window_N.to(device), self._filters_GF.to(device)
            self._mean_C11, self._std_C11 = self._mean_C11.to(device), self._std_C11.to(device)

    def _check(self, batch: AVBatch) -> None:
        _, frames, height, width, _ = batch.video_BTHWC.shape
        samples = batch.waveform_BN.shape[1]
        if height != width:
            raise ConfigError(f"clips are {width}x{height} pixels; preprocessing takes squares of clip.load_size")
        if (frames, samples) != (self.clip.num_frames, self.clip.num_samples):
            raise ConfigError(
                f"clips hold {frames} frames and {samples} samples, but the config's clip has {self.clip.num_frames} "
                f"and {self.clip.num_samples}; read them with the same clip section"
            )

    def _video(self, video_BTHWC: Tensor, seed_B: Tensor | None) -> Tensor:
        box = whole_square(video_BTHWC) if seed_B is None else self._random_box(video_BTHWC, seed_B)
        video_BTCHW = resize_boxes(video_BTHWC, box, self.clip.image_size).div_(255.0)
        if seed_B is not None:
            self._jitter(video_BTCHW, seed_B)
        return video_BTCHW.sub_(self._mean_C11).div_(self._std_C11)

    def _random_box(self, video_BTHWC: Tensor, seed_B: Tensor) -> CropBox:
        stored_side = video_BTHWC.shape[2]
        scale_B, top_B, left_B, flip_B = seeding.uniform(seed_B, "crop", 4).unbind(1)
        smallest = self.augment.crop_scale_min
        side_B = stored_side * (smallest + (1 - smallest) * scale_B)
        room_B = stored_side - side_B
        return CropBox(top_B * room_B, left_B * room_B, side_B, flip_B < self.augment.flip_probability)

    def _jitter(self, video_BTCHW: Tensor, seed_B: Tensor) -> None:
        """Changes contrast about the clip's own mean, then brightness, in place; all frames of a clip alike."""
        draw_B2 = seeding.uniform(seed_B, "colour", 2) * 2 - 1
        contrast_B = (1 + self.augment.contrast * draw_B2[:, 0]).view(-1, 1, 1, 1, 1)
        brightness_B = (1 + self.augment.brightness * draw_B2[:, 1]).view(-1, 1, 1, 1, 1)
        mean_B = video_BTCHW.mean(dim=(1, 2, 3, 4), keepdim=True)
        video_BTCHW.sub_(mean_B).mul_(contrast_B).add_(mean_B).mul_(brightness_B).clamp_(0, 1)

    def _mel(self, waveform_BN: Tensor, seed_B: Tensor | None) -> Tensor:
        if seed_B is not None:
            gain_db_B = (seeding.uniform(seed_B, "volume") * 2 - 1) * self.augment.volume_db
            waveform_BN = waveform_BN * 10 ** (gain_db_B[:, None] / 20)
            if self.augment.audio_noise_std > 0:
                noise_BN = seeding.normal(seed_B, "audio_noise", waveform_BN.shape[1])
                waveform_BN = waveform_BN + self.augment.audio_noise_std * noise_BN
        mel_BMF = log_mel(waveform_BN, self._window_N, self._filters_GF, self.clip)
        return (mel_BMF - self.clip.mel_mean) / self.clip.mel_std


# ------------------------------------------------------------------------------------------- video


def whole_square(video_BTHWC: Tensor) -> CropBox:
    """Returns the box that keeps every pixel of every clip."""
    zero_B = torch.zeros(len(video_BTHWC), device=video_BTHWC.device)
    return CropBox(zero_B, zero_B, zero_B + video_BTHWC.shape[2], zero_B > 0)


def resize_boxes(video_BTHWC: Tensor, box: CropBox, size: int) -> Tensor:
    """Cuts one square per clip and resizes it, antialiased, in two matrix products.

    Bilinear resampling is linear in rows and in columns, so a clip's crop, mirror image and filter fit into two
    small matrices; clips with different boxes need no loop and no host sync.

    Args:
        video_BTHWC: uint8 or float.
        size: side of the result in pixels.

    Returns:
        (B, T, C, size, size) float32 on the scale of the input; for the whole square equal to
        `interpolate(..., mode="bilinear", antialias=True)`.
    """
    frames, side = video_BTHWC.shape[1:3]
    no_flip_B = torch.zeros_like(box.flip_B)
    rows_BhH = resample_weights(box.top_B, box.side_B, no_flip_B, side, size)
    columns_BwW = resample_weights(box.left_B, box.side_B, box.flip_B, side, size)
    x = torch.bmm(rows_BhH, rearrange(video_BTHWC, "b t h w c -> b h (t c w)").float())
    x = torch.bmm(columns_BwW, rearrange(x, "b h (t c w) -> b w (t c h)", t=frames, w=side))
    return rearrange(x, "b w (t c h) -> b t c h w", t=frames, h=size)


def resample_weights(start_B: Tensor, length_B: Tensor, flip_B: Tensor, stored: int, size: int) -> Tensor:
    """Returns (B, size, stored) triangle-filter weights that read `size` samples out of [start, start + length)."""
    scale_B11 = (length_B / size).view(-1, 1, 1)
    index_h = torch.arange(size, device=start_B.device)
    index_Bh = torch.where(flip_B[:, None], size - 1 - index_h, index_h)
    centre_Bh1 = start_B.view(-1, 1, 1) + (index_Bh[:, :, None] + 0.5) * scale_B11
    pixel_H = torch.arange(stored, device=start_B.device) + 0.5
    weights_BhH = (1 - (pixel_H - centre_Bh1).abs() / scale_B11.clamp_min(1)).clamp_min(0)
    return weights_BhH / weights_BhH.sum(-1, keepdim=True)


# ------------------------------------------------------------------------------------------- sound


def log_mel(waveform_BN: Tensor, window_N: Tensor, filters_GF: Tensor, clip: ClipConfig) -> Tensor:
    """Returns the natural logarithm of mel power, (B, num_mel_frames, num_mel_bins).

    Frame m is centred on samples [m * hop, (m + 1) * hop), so frames and hops tile the clip exactly and slices of
    sound and picture share their borders (Kaldi's `snip_edges=False`; the ends are mirrored).
    """
    reach = clip.window_samples - clip.hop_samples
    left = reach // 2
    padded_BN = F.pad(waveform_BN, (left, reach - left), mode="reflect")
    frames_BMN = padded_BN.unfold(1, clip.window_samples, clip.hop_samples)
    spectrum_BMG = torch.fft.rfft(frames_BMN * window_N, n=clip.fft_samples)
    power_BMG = spectrum_BMG.real.square() + spectrum_BMG.imag.square()
    return (power_BMG @ filters_GF + POWER_FLOOR).log()


def mel_filters(clip: ClipConfig) -> Tensor:
    """Returns triangular filters (fft_samples // 2 + 1, num_mel_bins), HTK mel scale, peak 1."""
    low, high = _hz_to_mel(clip.mel_low_hz), _hz_to_mel(clip.mel_high_hz)
    edges_mel = torch.linspace(low, high, clip.num_mel_bins + 2, dtype=torch.float64)
    edges_hz = 700.0 * (10 ** (edges_mel / 2595.0) - 1)
    bins_hz = torch.linspace(0, clip.sample_rate_hz / 2, clip.fft_samples // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


def _hz_to_mel(frequency_hz: float) -> float:
    return 2595.0 * math.log10(1.0 + frequency_hz / 700.0)
