"""Window arithmetic and window labels."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avff.batch import UNKNOWN
from avff.config import ClipConfig
from avff.data.index import usable_seconds
from avff.data.windows import spans, window_labels
from avff.errors import ConfigError
from avff.schema import AudioInfo, EncoderInfo, FakeSegments, SampleMetadata, VideoInfo
from avff.windows import cut_sound, frame_indices, sliding_starts

CLIP = ClipConfig(num_frames=8, hop_samples=100)  # 1.6 s at 5 frames per second


@given(stored_rate=st.sampled_from([5.0, 6.0, 10.0, 12.0, 24.0, 25.0, 29.97, 30.0]), start=st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_frames_are_the_nearest_stored_ones(stored_rate, start):
    indices = frame_indices(start, stored_rate, CLIP)
    wanted_seconds = start / stored_rate + np.arange(8) / 5.0
    assert indices[0] == start and (np.diff(indices) > 0).all()
    assert np.abs(indices / stored_rate - wanted_seconds).max() <= 0.5 / stored_rate + 1e-6
    # All frames lie inside the window, so none shows what the sound does not cover.
    assert indices[-1] < start + CLIP.duration_seconds * stored_rate


def test_a_tie_takes_the_later_frame():
    half_steps = ClipConfig(num_frames=4, frames_per_second=2.0, hop_samples=100)
    assert frame_indices(0, 5.0, half_steps).tolist() == [0, 3, 5, 8]


@given(first=st.integers(0, 400), num_starts=st.integers(1, 400), stored_rate=st.sampled_from([5.0, 12.0, 25.0, 30.0]))
@settings(max_examples=100, deadline=None)
def test_sliding_starts_cover_everything(first, num_starts, stored_rate):
    starts = sliding_starts(range(first, first + num_starts), stored_rate, CLIP)
    assert starts[0] == first and starts[-1] == first + num_starts - 1
    assert len(set(starts)) == len(starts)
    assert max(np.diff(starts), default=0) <= CLIP.duration_seconds * stored_rate / 2


@given(num_frames=st.integers(1, 40), missing=st.integers(0, 12000), stored_rate=st.sampled_from([5.0, 12.0, 25.0]))
@settings(max_examples=100, deadline=None)
def test_index_promises_what_windows_keep(metadata, num_frames, missing, stored_rate):
    """`usable_seconds`, which the plan filters by, and `spans`, which cuts, agree on what is long enough."""
    num_samples = max(1, round(num_frames / stored_rate * 16000) - missing)
    sample = metadata(num_frames=num_frames, frames_per_second=stored_rate, num_samples=num_samples)
    usable = usable_seconds(sample)
    assume(abs(usable - CLIP.duration_seconds) > 1e-5 or usable == CLIP.duration_seconds)
    found = spans(sample, CLIP)
    assert bool(found) == (usable + 1e-6 >= CLIP.duration_seconds)
    for span in found:
        last = frame_indices(span.starts[-1], stored_rate, CLIP)[-1]
        assert last < num_frames
        missing_at_the_end = round(span.starts[-1] / stored_rate * 16000) + CLIP.num_samples - num_samples
        assert missing_at_the_end <= 0.02 * 16000 + 1


@pytest.fixture(scope="module")
def metadata():
    """Metadata of a whole-frame sample, without content: `metadata(num_frames=..., tracks=..., ...)`."""

    def make(*, num_frames=16, frames_per_second=5.0, num_samples=None, tracks=(), status=("OK",), **labels):
        duration = num_frames / frames_per_second
        known = {"is_fake": None, "video_is_fake": None, "audio_is_fake": None, "fake_segments_seconds": None, **labels}
        return SampleMetadata(
            key="k",
            source_key="k",
            dataset="d",
            split="train",
            source_path="k.mp4",
            source_sha256="",
            segment=0,
            group_ids=[],
            category=None,
            methods=[],
            video=VideoInfo(
                width=64,
                height=64,
                fps_source=25.0,
                fps=frames_per_second,
                num_frames=num_frames,
                start_seconds=0.0,
                duration_seconds=duration,
            ),
            audio=AudioInfo(
                has_audio=True, num_samples=round(duration * 16000) if num_samples is None else num_samples
            ),
            tracks=list(tracks),
            encoder=EncoderInfo(profile="p", codec="h264", parameters={}),
            status=list(status),
            **known,
        )

    return make


def test_a_clip_exactly_as_long_as_the_sample(metadata):
    assert [span.starts for span in spans(metadata(num_frames=8), CLIP)] == [range(1)]
    assert spans(metadata(num_frames=7), CLIP) == []
    assert spans(metadata(num_frames=8, num_samples=25600 - 321), CLIP) == []
    assert len(spans(metadata(num_frames=8, num_samples=25600 - 320), CLIP)) == 1


def test_no_window_in_a_sample_without_face_or_sound(metadata):
    assert spans(metadata(status=("NO_AUDIO",)), CLIP) == []
    assert spans(metadata(status=("NO_FACE", "TOO_SHORT")), CLIP) == []


def test_stored_rate_below_the_clips(metadata):
    with pytest.raises(ConfigError, match=r"'k': video is stored at 4 frames per second, clip.frames_per_second is 5"):
        spans(metadata(frames_per_second=4.0), CLIP)


def test_sound_is_cut_at_the_window_and_padded_only_at_the_very_end():
    sound_N = np.arange(1, 40001, dtype=np.float32)
    assert cut_sound(sound_N, 0.4, CLIP).tolist() == sound_N[6400:32000].tolist()
    late = cut_sound(sound_N[:31800], 0.4, CLIP)
    assert late[:25400].tolist() == sound_N[6400:31800].tolist() and not late[25400:].any()


@pytest.mark.parametrize(
    ("labels", "segments", "track_is_fake", "expected"),
    [
        # is_fake, video_is_fake, audio_is_fake of the clip; what is known of the window [1.0, 2.6)
        ((0, 0, 0), None, None, (0, 0, 0)),
        ((1, 1, 0), None, None, (1, 1, 0)),
        ((1, 1, 0), {"video": [[0.0, 1.0]]}, None, (0, 0, 0)),  # ends where the window starts: half open
        ((1, 1, 0), {"video": [[0.0, 1.1]]}, None, (1, 1, 0)),
        ((1, 1, 1), {"video": [[3.0, 4.0]], "audio": [[2.0, 2.1]]}, None, (1, 0, 1)),
        ((1, 1, 1), {"video": [[3.0, 4.0]]}, None, (1, 0, 1)),  # no audio stretch named: the clip's label
        ((1, None, None), None, None, (1, UNKNOWN, UNKNOWN)),
        ((None, None, None), None, None, (UNKNOWN, UNKNOWN, UNKNOWN)),
        ((1, None, None), {"video": [[3.0, 4.0]]}, None, (UNKNOWN, 0, UNKNOWN)),
        ((1, 1, 0), None, 0, (0, 0, 0)),  # the other face is the forged one
        ((1, 1, 1), None, 0, (1, 0, 1)),
        ((1, 1, 0), {"video": [[3.0, 4.0]]}, 1, (0, 0, 0)),
    ],
)
def test_window_labels(metadata, make_sample, labels, segments, track_is_fake, expected):
    names = ("is_fake", "video_is_fake", "audio_is_fake")
    described = metadata(
        **dict(zip(names, labels, strict=True)), fake_segments_seconds=FakeSegments(**segments) if segments else None
    )
    track = None if track_is_fake is None else make_sample("t", track_labels=[track_is_fake]).metadata.tracks[0]
    assert window_labels(described, track, 1.0, 2.6) == expected
