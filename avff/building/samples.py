"""One source into its samples: the one place that building and prediction share."""

from collections.abc import Iterator

from avff.build_config import BuildConfig
from avff.building.sources import Source
from avff.data.shards import Sample
from avff.errors import MediaError
from avff.files import sha256_of
from avff.media.boxes import BoxTracks
from avff.media.clips import MediaClip, cut_clips
from avff.schema import FakeSegments, Label, SampleMetadata, VideoInfo, complete_labels


def build_samples(source: Source, config: BuildConfig, boxes: BoxTracks | None = None) -> list[Sample]:
    """Cuts a source into samples with complete metadata; see `cut_samples`."""
    return list(cut_samples(source, config, boxes))


def cut_samples(
    source: Source, config: BuildConfig, boxes: BoxTracks | None = None, *, num_threads: int = 0
) -> Iterator[Sample]:
    """Yields one sample per segment, in order; those that a model cannot read carry the reasons as `status`.

    Args:
        boxes: the source's own face boxes, in mode `boxes`.
        num_threads: that help this one (avff.media.helpers). No effect on what comes.

    Raises:
        MediaError: the file cannot be read or decoded, or holds no video.
    """
    try:
        digest = sha256_of(source.path)
    except OSError as error:
        raise MediaError(f"{source.path}: cannot be read: {error}", reason="UNREADABLE") from error
    for clip in cut_clips(source.path, config, boxes, num_threads=num_threads):
        yield _sample(source, digest, clip)


def _sample(source: Source, digest: str, clip: MediaClip) -> Sample:
    segments = shift_segments(source.fake_segments_seconds, clip.video)
    is_fake, video_is_fake, audio_is_fake, category = complete_labels(*segment_labels(source, segments))
    metadata = SampleMetadata(
        key=f"{source.source_key}_{clip.segment:04d}",
        source_key=source.source_key,
        dataset=source.dataset,
        split=source.split,
        source_path=source.name,
        source_sha256=digest,
        segment=clip.segment,
        group_ids=list(source.group_ids),
        is_fake=is_fake,
        video_is_fake=video_is_fake,
        audio_is_fake=audio_is_fake,
        category=category,
        methods=list(source.methods),
        fake_segments_seconds=segments,
        video=clip.video,
        audio=clip.audio,
        tracks=clip.tracks,
        encoder=clip.encoder,
        status=clip.status,
        extra=source.extra,
    )
    members = {f"{name}.mp4": content for name, content in clip.videos.items()}
    if clip.flac is not None:
        members["flac"] = clip.flac
    return Sample(metadata, members)


def segment_labels(source: Source, here: FakeSegments | None) -> tuple[Label, Label, Label]:
    """Returns is_fake, video_is_fake, audio_is_fake of one segment; a modality is real where none of its stretches lies.

    Args:
        here: what is left of the source's forged stretches in the segment.
    """
    whole, labels = source.fake_segments_seconds, (source.is_fake, source.video_is_fake, source.audio_is_fake)
    if whole is None or here is None:
        return labels
    video: Label = 0 if whole.video and not here.video else source.video_is_fake
    audio: Label = 0 if whole.audio and not here.audio else source.audio_is_fake
    # What was said of the whole file says nothing of a segment whose modalities differ from it.
    return labels if (video, audio) == labels[1:] else (None, video, audio)


def shift_segments(segments: FakeSegments | None, video: VideoInfo) -> FakeSegments | None:
    """Returns forged stretches of a source in the time of one of its samples, cut to it."""
    if segments is None:
        return None

    def cut(stretches: list[list[float]]) -> list[list[float]]:
        moved = [[max(0.0, a - video.start_seconds), b - video.start_seconds] for a, b in stretches]
        inside = [[a, min(b, video.duration_seconds)] for a, b in moved]
        return [[round(a, 6), round(b, 6)] for a, b in inside if a < b]

    return FakeSegments(video=cut(segments.video), audio=cut(segments.audio))
