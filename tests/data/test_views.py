"""AVView on real h264 and FLAC: frame numbers painted in pixels and time-coded sound have to agree."""

import numpy as np
import pytest
import torch

from avff.config import ClipConfig
from avff.data.views import AVView
from avff.errors import ConfigError, ShardError
from avff.windows import centre_square

CLIP = ClipConfig(num_frames=8, image_size=32, hop_samples=100)  # 1.6 s; squares of 48 pixels
NUM_BITS = 8


def painted_frames(num_frames):
    """Frames of 64 x 64 pixels whose number stands in 8 vertical stripes, white for a 1."""
    bits_TB = np.arange(num_frames)[:, None] >> np.arange(NUM_BITS) & 1
    stripes_TW = np.repeat(bits_TB * 255, 64 // NUM_BITS, axis=1).astype(np.uint8)
    return np.broadcast_to(stripes_TW[:, None, :, None], (num_frames, 64, 64, 3))


def painted_numbers(video_THWC):
    """Reads the frame numbers back, also after resizing and lossy coding."""
    centres = ((np.arange(NUM_BITS) + 0.5) * video_THWC.shape[2] / NUM_BITS).astype(int)
    bits_TB = video_THWC[:, video_THWC.shape[1] // 2, centres].mean(axis=-1) > 127
    return (bits_TB << np.arange(NUM_BITS)).sum(axis=1)


def coded_sound(num_samples):
    """Sound whose value is its own sample number, modulo 65536."""
    return (np.arange(num_samples) % 65536 - 32768).astype(np.int16)


def coded_numbers(waveform_N):
    return np.round(waveform_N * 32768).astype(int) + 32768


@pytest.fixture
def coded_sample(make_sample):
    def make(stored_rate, num_frames, **keywords):
        num_samples = round(num_frames / stored_rate * 16000)
        return make_sample(
            "coded",
            num_frames=num_frames,
            frames_per_second=stored_rate,
            video_THWC=painted_frames(num_frames),
            sound_N=coded_sound(num_samples),
            **keywords,
        )

    return make


@pytest.mark.parametrize(("stored_rate", "num_frames"), [(5.0, 20), (10.0, 40), (12.0, 44), (25.0, 100)])
@pytest.mark.parametrize("first_frame", [0, 7])
def test_frames_and_sound_cover_the_same_time(coded_sample, stored_rate, num_frames, first_frame):
    sample = coded_sample(stored_rate, num_frames, tracks=[(first_frame, num_frames - first_frame)])
    view = AVView(CLIP)
    starts = set()
    for seed in range(12):
        clip = view.train_clips(sample, [seed])[0]
        starts.add(clip.start_seconds)
        frame_seconds = painted_numbers(clip.video_THWC) / stored_rate
        sound_seconds = coded_numbers(clip.waveform_N)[:: 16000 // 5] / 16000
        assert frame_seconds[0] == pytest.approx(clip.start_seconds)
        # 65536 samples wrap after 4.096 s, longer than every sample here.
        assert sound_seconds[0] == pytest.approx(clip.start_seconds, abs=0.5 / 16000)
        assert np.abs(frame_seconds - sound_seconds).max() <= 0.5 / stored_rate + 1 / 16000
        assert (np.diff(coded_numbers(clip.waveform_N)) == 1).all()
    assert len(starts) > 3 and min(starts) >= first_frame / stored_rate


def test_clip_shapes_and_types(coded_sample):
    clip = AVView(CLIP).train_clips(coded_sample(5.0, 16), [3])[0]
    assert clip.video_THWC.shape == (8, 48, 48, 3) and clip.video_THWC.dtype == np.uint8
    assert clip.waveform_N.shape == (25600,) and clip.waveform_N.dtype == np.float32
    assert (clip.key, clip.track, clip.seed) == ("coded", 0, 3)
    assert (clip.is_fake, clip.video_is_fake, clip.audio_is_fake) == (0, 0, 0)


def test_the_seed_decides_window_and_track(make_sample):
    sample = make_sample("two", tracks=[(0, 16), (2, 14)])
    view = AVView(CLIP)
    clips = [view.train_clips(sample, [seed])[0] for seed in range(20)]
    again = view.train_clips(sample, [7])[0]
    assert (again.track, again.start_seconds) == (clips[7].track, clips[7].start_seconds)
    assert (again.video_THWC == clips[7].video_THWC).all() and (again.waveform_N == clips[7].waveform_N).all()
    assert {clip.track for clip in clips} == {0, 1}
    for alone, beside in zip(clips, view.train_clips(sample, range(20)), strict=True):
        assert (beside.seed, beside.track, beside.start_seconds) == (alone.seed, alone.track, alone.start_seconds)
        assert (beside.video_THWC == alone.video_THWC).all() and (beside.waveform_N == alone.waveform_N).all()


def test_the_known_speaker_comes_first(make_sample):
    sample = make_sample("two", tracks=[(0, 16), (0, 16)], speakers=[False, True])
    assert {AVView(CLIP).train_clips(sample, [seed])[0].track for seed in range(8)} == {1}
    short = make_sample("short", tracks=[(0, 16), (0, 7)], speakers=[False, True])
    assert AVView(CLIP).train_clips(short, [0])[0].track == 0


def test_evaluation_reads_all_tracks_in_overlapping_windows(coded_sample):
    sample = coded_sample(5.0, 20, tracks=[(0, 20), (3, 9), (5, 7)])
    clips = AVView(CLIP).evaluation_clips(sample)
    assert [(clip.track, round(clip.start_seconds * 5)) for clip in clips] == [
        (0, 0),
        (0, 4),
        (0, 8),
        (0, 12),
        (1, 3),
        (1, 4),
    ]
    for clip in clips:
        start = round(clip.start_seconds * 5)
        assert painted_numbers(clip.video_THWC).tolist() == list(range(start, start + 8))
        assert coded_numbers(clip.waveform_N)[0] == start * 3200
    assert len({clip.seed for clip in clips}) == len(clips)
    assert [clip.seed for clip in AVView(CLIP).evaluation_clips(sample)] == [clip.seed for clip in clips]


@pytest.mark.parametrize("keywords", [{"status": ["NO_FACE"]}, {"status": ["NO_AUDIO"]}, {"num_frames": 7}])
def test_no_clip_without_face_sound_or_length(make_sample, keywords):
    sample = make_sample("x", **keywords)
    assert AVView(CLIP).evaluation_clips(sample) == []
    with pytest.raises(ShardError, match=r"sample 'x' .* no stretch of picture and sound lasts the 1.6 s of a clip"):
        AVView(CLIP).train_clips(sample, [0])[0]


def test_whole_frames_are_cut_to_their_centre(make_sample):
    wide = np.zeros((8, 64, 128, 3), dtype=np.uint8)
    wide[:, :, 32:96] = 200
    clip = AVView(CLIP).train_clips(make_sample("x", num_frames=8, video_THWC=wide, tracks=[]), [0])[0]
    assert clip.track == -1 and clip.video_THWC.shape == (8, 48, 48, 3)
    assert clip.video_THWC[:, :, 2:-2].min() > 180


def test_centre_square_keeps_pixels_where_the_side_fits():
    video = np.arange(2 * 5 * 9 * 3, dtype=np.uint8).reshape(2, 5, 9, 3)
    assert (centre_square(video, 5) == video[:, :, 2:7]).all()
    assert centre_square(video, 3).shape == (2, 3, 3, 3)


def test_collate(coded_sample, make_sample):
    view = AVView(CLIP)
    clips = [view.train_clips(coded_sample(5.0, 16), [1])[0], view.train_clips(make_sample("b", is_fake=1), [2])[0]]
    batch = view.collate(clips)
    assert batch.keys == ("coded", "b") and batch.tracks == (0, 0)
    assert batch.video_BTHWC.shape == (2, 8, 48, 48, 3) and batch.video_BTHWC.dtype == torch.uint8
    assert (batch.video_BTHWC[1].numpy() == clips[1].video_THWC).all()
    assert batch.waveform_BN.shape == (2, 25600) and batch.waveform_BN.dtype == torch.float32
    assert batch.seed_B.tolist() == [1, 2] and batch.seed_B.dtype == torch.int64
    assert (batch.is_fake_B.tolist(), batch.video_is_fake_B.tolist()) == ([0, 1], [0, -1])


def test_members_that_do_not_decode_are_named(make_sample):
    sample, view = make_sample("x"), AVView(CLIP)
    broken = {
        r"'x': face0.mp4: video cannot be decoded": {"face0.mp4": b"no video"},
        r"'x': flac: sound cannot be decoded": {"flac": b"no sound"},
        r"'x': face0.mp4: holds 12 frames, the metadata says 16": {
            "face0.mp4": make_sample("y", num_frames=12).members["face0.mp4"]
        },
        r"'x': flac: holds 38400 audio samples, the metadata says 51200": {
            "flac": make_sample("y", num_frames=12).members["flac"]
        },
    }
    for message, members in broken.items():
        with pytest.raises(ShardError, match=message):
            view.train_clips(sample._replace(members={**sample.members, **members}), [0])[0]


def test_a_faster_view_than_what_is_stored(make_sample):
    fast = ClipConfig(num_frames=16, frames_per_second=10.0, hop_samples=100)
    with pytest.raises(
        ConfigError, match=r"stored at 5 frames per second, clip.frames_per_second is 10; lower it to 5"
    ):
        AVView(fast).evaluation_clips(make_sample("x"))
