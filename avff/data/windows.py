"""Where a clip may start in a stored sample, and what its labels are there; see avff.windows for the arithmetic."""

from typing import NamedTuple

from avff.batch import UNKNOWN
from avff.config import ClipConfig
from avff.data.index import MAX_SOUND_GAP_SECONDS
from avff.errors import ConfigError
from avff.schema import SampleMetadata, Track
from avff.windows import RATE_TOLERANCE, last_start


class Span(NamedTuple):
    """One video member and the places where a window may start in it.

    Attributes:
        member: `frame.mp4` or `face<N>.mp4`.
        track: the face track, or None for the whole frame.
        first_frame: stored frame of the sample at which the member starts.
        num_frames: of the member.
        starts: stored frames of the sample at which a window may start, never empty.
    """

    member: str
    track: Track | None
    first_frame: int
    num_frames: int
    starts: range

    @property
    def track_id(self) -> int:
        return -1 if self.track is None else self.track.id


def spans(metadata: SampleMetadata, clip: ClipConfig) -> list[Span]:
    """Returns every track (or the whole frame) that is long enough for a clip; none if the status is not OK.

    Raises:
        ConfigError: video is stored at a lower rate than the clip's.
    """
    if metadata.status != ["OK"]:
        return []
    check_rate(metadata.video.fps, clip, f"sample {metadata.key!r}")
    whole = [("frame.mp4", None, 0, metadata.video.num_frames)]
    tracks = [(f"face{t.id}.mp4", t, t.first_frame, t.num_frames) for t in metadata.tracks]
    found = []
    for member, track, first, count in tracks or whole:
        stop = _last_start(metadata, clip, first + count) + 1
        if stop > first:
            found.append(Span(member, track, first, count, range(first, stop)))
    return found


def check_rate(stored: float, clip: ClipConfig, where: str) -> None:
    """Refuses to invent frames between stored ones.

    Raises:
        ConfigError: names both rates.
    """
    if stored + RATE_TOLERANCE < clip.frames_per_second:
        raise ConfigError(
            f"{where}: video is stored at {stored:g} frames per second, clip.frames_per_second is "
            f"{clip.frames_per_second:g}; lower it to {stored:g}, or rebuild the shards at {clip.frames_per_second:g}"
        )


def _last_start(metadata: SampleMetadata, clip: ClipConfig, stop_frame: int) -> int:
    audio = metadata.audio
    sound_seconds = audio.num_samples / audio.sample_rate_hz + MAX_SOUND_GAP_SECONDS
    return last_start(stop_frame, sound_seconds, metadata.video.fps, clip)


def window_labels(
    metadata: SampleMetadata, track: Track | None, start_seconds: float, stop_seconds: float
) -> tuple[int, int, int]:
    """Returns is_fake, video_is_fake, audio_is_fake of a window: 0 real, 1 fake, UNKNOWN.

    Where forged stretches are named, a window is fake in that modality if it overlaps one; else the clip's label
    holds for every window. A track known to be real has a real picture in any window.
    """
    segments = metadata.fake_segments_seconds
    video: int | None = metadata.video_is_fake if track is None or track.is_fake is None else track.is_fake
    audio: int | None = metadata.audio_is_fake
    if segments and segments.video and video != 0:
        video = _overlaps(segments.video, start_seconds, stop_seconds)
    if segments and segments.audio and audio != 0:
        audio = _overlaps(segments.audio, start_seconds, stop_seconds)
    return _known(_overall(metadata, video, audio)), _known(video), _known(audio)


def _known(label: int | None) -> int:
    return UNKNOWN if label is None else label


def _overlaps(ranges: list[list[float]], start_seconds: float, stop_seconds: float) -> int:
    return int(any(start < stop_seconds and start_seconds < stop for start, stop in ranges))


def _overall(metadata: SampleMetadata, video: int | None, audio: int | None) -> int | None:
    if 1 in (video, audio):
        return 1
    if video == 0 and audio == 0:
        return 0
    # A modality that was narrowed to this window no longer supports a verdict on the whole clip.
    unchanged = (video, audio) == (metadata.video_is_fake, metadata.audio_is_fake)
    return metadata.is_fake if unchanged else None
