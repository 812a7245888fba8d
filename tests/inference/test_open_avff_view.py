"""Open-AVFF's preprocessing against the calls that its public code makes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchaudio.compliance import kaldi
from torchvision import transforms

from avff.inference import open_avff_view
from avff.inference.open_avff_view import OpenAvffView, fit_frame, spread_frames, whole_mel

THEIR_TRANSFORMS = {"crop": transforms.CenterCrop(224), "resize": transforms.Resize((224, 224))}


def their_mel(samples_CN, rate_hz):
    waveform = torch.from_numpy(samples_CN)
    fbank = kaldi.fbank(
        waveform - waveform.mean(),
        htk_compat=True,
        sample_frequency=rate_hz,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    stretched = F.interpolate(fbank[None].transpose(1, 2), size=(1024,), mode="linear", align_corners=False)
    return (stretched.transpose(1, 2)[0] + 5.081) / 4.4849


def sound(seconds, rate_hz, channels=1):
    generator = np.random.default_rng(3)
    samples = generator.normal(0.02, 0.1, (channels, round(seconds * rate_hz))).astype(np.float32)
    samples[0] += 0.2 * np.sin(np.arange(samples.shape[1]) * 0.05).astype(np.float32)
    return samples


@pytest.mark.parametrize(("rate_hz", "seconds", "channels"), [(44100, 1.3, 2), (16000, 12.0, 1), (48000, 0.03, 1)])
def test_the_spectrogram_is_kaldis_stretched_to_1024_frames(rate_hz, seconds, channels):
    samples_CN = sound(seconds, rate_hz, channels)
    found = whole_mel(samples_CN, rate_hz)
    assert found.shape == (1024, 128)
    assert (found - their_mel(samples_CN, rate_hz)).abs().max() < 1e-4


def test_long_sound_is_computed_in_blocks_without_a_seam(monkeypatch):
    samples_CN = sound(2.0, 16000)
    whole = whole_mel(samples_CN, 16000)
    monkeypatch.setattr(open_avff_view, "_BLOCK_FRAMES", 37)
    assert (whole_mel(samples_CN, 16000) - whole).abs().max() < 1e-5


def test_sound_shorter_than_a_window_has_no_spectrogram():
    assert whole_mel(sound(0.0249, 16000), 16000) is None
    assert whole_mel(sound(0.025, 16000), 16000).shape == (1024, 128)


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("size", [(224, 224), (300, 271), (225, 640), (97, 500), (60, 61)])
def test_frames_are_cut_or_squeezed_as_torchvision_does(fit, size):
    frame_HWC = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(THEIR_TRANSFORMS[fit](Image.fromarray(frame_HWC)))
    assert np.array_equal(fit_frame(frame_HWC, fit), expected)


def test_frames_are_spread_from_the_first_to_the_last():
    assert spread_frames(134).tolist() == np.linspace(0, 133, 16).astype(int).tolist()
    assert spread_frames(3).tolist() == [0] * 8 + [1] * 7 + [2]


def test_stored_tracks_bring_their_own_time(make_sample):
    frames = np.repeat(np.arange(20, dtype=np.uint8)[:, None, None, None] * 12, 64, axis=1)
    frames = np.broadcast_to(frames.repeat(64, axis=2), (20, 64, 64, 3))
    noise = np.random.default_rng(2).integers(-9000, 9000, 64000).astype(np.int16)
    both = make_sample("both", num_frames=20, tracks=[(0, 10), (10, 10)], video_THWC=frames, sound_N=noise)
    first, second = OpenAvffView("resize").evaluation_clips(both)
    assert [(clip.key, clip.track, clip.start_seconds) for clip in (first, second)] == [("both", 0, 0), ("both", 1, 2)]
    shown = [clip.video_THWC.mean(axis=(1, 2, 3)) / 12 for clip in (first, second)]
    assert np.abs(shown[0] - spread_frames(10)).max() < 0.6 and np.abs(shown[1] - spread_frames(10) - 10).max() < 0.6
    for clip, part in ((first, noise[:32000]), (second, noise[32000:])):
        assert torch.equal(clip.mel_MF, whole_mel(part[None].astype(np.float32) / 32768, 16000))


@pytest.mark.parametrize("status", ["NO_FACE", "NO_AUDIO", "TOO_SHORT"])
def test_what_is_undecided_gives_no_clip(make_sample, status):
    assert OpenAvffView("crop").evaluation_clips(make_sample("x", status=[status])) == []
