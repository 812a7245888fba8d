"""Crops, resizing and log-mel against references, their place in time, and independence of the batch."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avff.batch import AVBatch
from avff.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, ClipConfig
from avff.errors import ConfigError
from avff.preprocess import POWER_FLOOR, CropBox, Preprocess, log_mel, mel_filters, resize_boxes, whole_square

CLIP = ClipConfig(num_frames=4, frames_per_second=5.0, image_size=48, hop_samples=100, num_mel_bins=40, num_slices=2)
NO_AUGMENT = AugmentConfig(flip_probability=0, crop_scale_min=1, brightness=0, contrast=0, volume_db=0)


def make_batch(clip: ClipConfig = CLIP, count: int = 3, side: int = 64) -> AVBatch:
    rng = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (count, clip.num_frames, side, side, 3), generator=rng).to(torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    return AVBatch(
        keys=tuple(f"clip{i}" for i in range(count)),
        tracks=(-1,) * count,
        start_seconds_B=torch.zeros(count, dtype=torch.float64),
        seed_B=torch.randint(0, 2**62, (count,), generator=rng),
        video_BTHWC=video,
        waveform_BN=0.1 * torch.randn(count, clip.num_samples, generator=rng),
        is_fake_B=labels,
        video_is_fake_B=labels,
        audio_is_fake_B=labels,
    )


def box(top: float, left: float, side: float, flip: bool = False) -> CropBox:
    return CropBox(torch.tensor([top]), torch.tensor([left]), torch.tensor([side]), torch.tensor([flip]))


# ------------------------------------------------------------------------------------------- video


@pytest.mark.parametrize("size", [48, 64, 96])
def test_whole_square_equals_antialiased_interpolation(size: int) -> None:
    video = make_batch().video_BTHWC
    pictures = video.permute(0, 1, 4, 2, 3).flatten(0, 1).float()
    expected = F.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(
        resize_boxes(video, whole_square(video), size).flatten(0, 1), expected, atol=2e-3, rtol=0
    )


def test_crop_at_full_resolution_is_a_slice() -> None:
    video = make_batch(count=1).video_BTHWC
    cut = resize_boxes(video, box(top=3, left=7, side=40), size=40)
    expected = video[:, :, 3:43, 7:47].permute(0, 1, 4, 2, 3).float()
    torch.testing.assert_close(cut, expected)
    torch.testing.assert_close(resize_boxes(video, box(3, 7, 40, flip=True), 40), expected.flip(-1))


def test_fractional_crop_reads_the_right_places() -> None:
    row = torch.arange(64.0)
    video = (1000 * row[:, None] + row[None, :]).view(1, 1, 64, 64, 1).expand(1, 2, 64, 64, 3)
    cut = resize_boxes(video, box(top=10.25, left=5.5, side=30), size=20)
    places = (torch.arange(20) + 0.5) * 1.5 - 0.5
    expected = 1000 * (10.25 + places)[:, None] + (5.5 + places)[None, :]
    torch.testing.assert_close(cut[0, 1, 2], expected, atol=0.05, rtol=0)


def test_evaluation_normalises_and_ignores_seeds() -> None:
    batch = make_batch()
    grey = batch._replace(video_BTHWC=torch.full_like(batch.video_BTHWC, 128))
    preprocess = Preprocess(CLIP, AugmentConfig())
    inputs = preprocess(grey, training=False)
    expected = [(128 / 255 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert inputs.video_BTCHW.shape == (3, 4, 3, 48, 48)
    torch.testing.assert_close(inputs.video_BTCHW[1, 2, :, 5, 6], torch.tensor(expected), atol=1e-5, rtol=0)
    again = preprocess(grey._replace(seed_B=grey.seed_B + 1), training=False)
    assert torch.equal(inputs.video_BTCHW, again.video_BTCHW) and torch.equal(inputs.mel_BMF, again.mel_BMF)


@pytest.mark.parametrize("training", [True, False])
def test_a_clip_looks_the_same_in_every_batch(training: bool) -> None:
    batch = make_batch()
    preprocess = Preprocess(CLIP, AugmentConfig(audio_noise_std=0.01))
    together = preprocess(batch, training=training)
    alone = preprocess(
        batch._replace(
            seed_B=batch.seed_B[1:2], video_BTHWC=batch.video_BTHWC[1:2], waveform_BN=batch.waveform_BN[1:2]
        ),
        training=training,
    )
    torch.testing.assert_close(together.video_BTCHW[1:2], alone.video_BTCHW, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together.mel_BMF[1:2], alone.mel_BMF, atol=1e-5, rtol=1e-5)


def test_training_without_augmentation_is_evaluation() -> None:
    batch = make_batch()
    preprocess = Preprocess(CLIP, NO_AUGMENT)
    trained, evaluated = preprocess(batch, training=True), preprocess(batch, training=False)
    torch.testing.assert_close(trained.video_BTCHW, evaluated.video_BTCHW, atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.mel_BMF, evaluated.mel_BMF)


@pytest.mark.parametrize(
    "change",
    [
        {"flip_probability": 1.0},
        {"crop_scale_min": 0.6},
        {"brightness": 0.3},
        {"contrast": 0.3},
    ],
)
def test_each_picture_augmentation_changes_all_frames_alike(change: dict[str, float]) -> None:
    batch = make_batch()
    still = batch._replace(video_BTHWC=batch.video_BTHWC[:, :1].expand(-1, 4, -1, -1, -1))
    plain = Preprocess(CLIP, NO_AUGMENT)(still, training=True).video_BTCHW
    augmented = Preprocess(CLIP, dataclasses.replace(NO_AUGMENT, **change))(still, training=True).video_BTCHW
    assert (augmented - plain).abs().amax(dim=(1, 2, 3, 4)).median() > 0.01
    torch.testing.assert_close(augmented, augmented[:, :1].expand_as(augmented))
    if "flip_probability" in change:
        torch.testing.assert_close(augmented, plain.flip(-1), atol=1e-5, rtol=0)


def test_volume_shifts_the_log_mel_within_bounds() -> None:
    batch = make_batch(count=16)
    plain = Preprocess(CLIP, NO_AUGMENT)(batch, training=True).mel_BMF
    louder = Preprocess(CLIP, dataclasses.replace(NO_AUGMENT, volume_db=6.0))(batch, training=True).mel_BMF
    shift_db_B = (louder - plain).mean(dim=(1, 2)) * CLIP.mel_std * 10 / math.log(10)
    assert shift_db_B.abs().max() <= 6.0 and shift_db_B.std() > 1.0


# ------------------------------------------------------------------------------------------- sound


def test_mel_filters_equal_torchaudio() -> None:
    functional = pytest.importorskip("torchaudio.functional")
    clip = ClipConfig()
    expected = functional.melscale_fbanks(513, clip.mel_low_hz, clip.mel_high_hz, 128, 16000)
    torch.testing.assert_close(mel_filters(clip), expected, atol=5e-5, rtol=0)
    assert (mel_filters(clip).sum(dim=0) > 0).all(), "an empty mel bin carries no sound"


@pytest.mark.parametrize("frame", [20, 77])
def test_log_mel_of_one_frame_by_hand(frame: int) -> None:
    waveform_N = make_batch().waveform_BN[0]
    window = torch.hann_window(CLIP.window_samples)
    mel_MF = log_mel(waveform_N[None], window, mel_filters(CLIP), CLIP)[0]
    start = frame * CLIP.hop_samples + CLIP.hop_samples // 2 - CLIP.window_samples // 2
    piece = (waveform_N[start : start + CLIP.window_samples] * window).numpy().astype(np.float64)
    power = np.abs(np.fft.rfft(piece, CLIP.fft_samples)) ** 2
    expected = np.log(power @ mel_filters(CLIP).numpy() + POWER_FLOOR)
    assert mel_MF.shape == (CLIP.num_mel_frames, CLIP.num_mel_bins)
    np.testing.assert_allclose(mel_MF[frame].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("hop_samples", [50, 160])
def test_frames_are_centred_on_their_hops(hop_samples: int) -> None:
    clip = ClipConfig(hop_samples=hop_samples, num_slices=8)
    for frame in (0, 1, clip.num_mel_frames // 3, clip.num_mel_frames - 1):
        click = torch.zeros(1, clip.num_samples)
        click[0, frame * hop_samples + hop_samples // 2] = 1.0
        mel_MF = log_mel(click, torch.hann_window(clip.window_samples), mel_filters(clip), clip)[0]
        assert mel_MF.sum(dim=1).argmax() == frame


def test_a_click_in_slice_k_changes_only_slice_k() -> None:
    clip = ClipConfig()
    batch = make_batch(clip, count=1, side=256)
    silent, slice_samples = torch.zeros(1, clip.num_samples), clip.num_samples // clip.num_slices
    preprocess = Preprocess(clip, NO_AUGMENT)
    quiet_BMF = preprocess(batch._replace(waveform_BN=silent), training=False).mel_BMF
    for k in range(clip.num_slices):
        click = silent.clone()
        click[0, k * slice_samples + slice_samples // 2] = 1.0
        mel_BMF = preprocess(batch._replace(waveform_BN=click), training=False).mel_BMF
        changed_S = (mel_BMF != quiet_BMF).view(clip.num_slices, -1).any(dim=1)
        assert changed_S.nonzero().flatten().tolist() == [k]


def test_a_click_at_a_slice_border_reaches_only_half_a_window_over() -> None:
    clip = ClipConfig()
    border_samples = 3 * clip.num_samples // clip.num_slices
    click = torch.zeros(1, clip.num_samples)
    click[0, border_samples] = 1.0
    window, filters = torch.hann_window(clip.window_samples), mel_filters(clip)
    changed = log_mel(click, window, filters, clip) != log_mel(torch.zeros_like(click), window, filters, clip)
    frames = changed[0].any(dim=1).nonzero().flatten()
    reach_frames = math.ceil(clip.window_samples / 2 / clip.hop_samples)
    border_frame = border_samples // clip.hop_samples
    assert border_frame - reach_frames <= frames.min() and frames.max() < border_frame + reach_frames


# ------------------------------------------------------------------------------------------- errors


def test_wrong_geometry_is_named() -> None:
    batch = make_batch()
    preprocess = Preprocess(CLIP, NO_AUGMENT)
    with pytest.raises(ConfigError, match=r"clips are 50x64 pixels"):
        preprocess(batch._replace(video_BTHWC=batch.video_BTHWC[:, :, :, :50]), training=False)
    with pytest.raises(ConfigError, match=r"hold 3 frames and 12800 samples, but the config's clip has 4"):
        preprocess(batch._replace(video_BTHWC=batch.video_BTHWC[:, :3]), training=False)
