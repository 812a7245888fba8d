"""A raw media file into the members of its samples: the one path that building and prediction share.

Each segment is decoded once to look (times of the stored frames, faces) and once to cut, so that never more than a few
full-size pictures are in memory, however long the file is.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from avff.build_config import BuildConfig
from avff.media.audio import SAMPLE_RATE_HZ, AudioLine
from avff.media.boxes import BoxTracks, box_paths
from avff.media.crops import FacePath, read_square_region, scale_region
from avff.media.encode import VideoEncoder, encode_flac, encoder_info
from avff.media.faces import FaceScanner
from avff.media.helpers import Helpers
from avff.media.reader import MediaInfo, UprightPicture, probe, read_frames, upright_rgb
from avff.media.sampling import StoredFrame, exact_rate, sample_frames, split_segments
from avff.schema import AudioInfo, EncoderInfo, StatusCode, Track, VideoInfo


@dataclass(frozen=True)
class MediaClip:
    """One segment of a file, encoded.

    Attributes:
        segment: number of the segment in its file.
        flac: the sound, or None if the source has none here.
        videos: mp4 bytes by member name, `frame` or `face0`, `face1`...; empty if no face was found.
        status: ["OK"], or the reasons why a model cannot read both modalities.
    """

    segment: int
    flac: bytes | None
    videos: dict[str, bytes]
    video: VideoInfo
    audio: AudioInfo
    tracks: list[Track]
    encoder: EncoderInfo
    status: list[StatusCode]


def make_clips(path: Path, config: BuildConfig, boxes: BoxTracks | None = None) -> list[MediaClip]:
    """Cuts one media file into encoded segments; see `cut_clips`."""
    return list(cut_clips(path, config, boxes))


def cut_clips(
    path: Path, config: BuildConfig, boxes: BoxTracks | None = None, *, num_threads: int = 0
) -> Iterator[MediaClip]:
    """Cuts one media file into encoded segments, in order.

    A remainder shorter than `min_seconds` is dropped; a whole file that is shorter is kept with status TOO_SHORT.

    Args:
        boxes: the file's own face boxes; needed in mode `boxes`, unused otherwise.
        num_threads: that help this one (avff.media.helpers). No effect on what comes.

    Raises:
        MediaError: the file cannot be decoded to its end, or has no video stream.
    """
    info = probe(path)
    rate = exact_rate(config.video.frames_per_second)
    per_segment = max(1, round(config.segment_seconds * rate))
    sound = AudioLine(path, info)
    with Helpers(num_threads) as helpers:
        looks = _find_faces(path, config, info, rate, per_segment, boxes, helpers)
        with helpers.one_ahead(looks) as found:
            for segment, frames in split_segments(sample_frames(read_frames(path), rate), per_segment):
                clip = _make_clip(segment, frames, next(found), sound, info, config, helpers)
                if segment == 0 or "TOO_SHORT" not in clip.status:
                    yield clip


def _find_faces(
    path: Path,
    config: BuildConfig,
    info: MediaInfo,
    rate: Fraction,
    per_segment: int,
    boxes: BoxTracks | None,
    helpers: Helpers,
) -> Iterator[list[FacePath]]:
    """Looks through the file; yields the accepted face tracks of every segment, largest first."""
    if config.mode == "frame":
        yield from itertools.repeat([])
    scanner = FaceScanner(config.faces, info, float(rate), helpers) if config.mode == "faces" else None
    shown = read_frames(path) if scanner is None else scanner.watch(read_frames(path))
    for segment, frames in split_segments(sample_frames(shown, rate), per_segment):
        times_T = np.array([float(frame.source_seconds) for frame in frames])
        stop_seconds = float((segment + 1) * per_segment / rate)
        yield box_paths(boxes or {}, times_T) if scanner is None else scanner.take_tracks(times_T, stop_seconds)


def _make_clip(
    segment: int,
    frames: Iterator[StoredFrame],
    faces: list[FacePath],
    sound: AudioLine,
    info: MediaInfo,
    config: BuildConfig,
    helpers: Helpers,
) -> MediaClip:
    profile, rate = config.video, exact_rate(config.video.frames_per_second)
    tracks = [_track(number, face, config, info) for number, face in enumerate(faces)]
    first_number, num_frames, videos = _encode_videos(frames, tracks, info, config, helpers)
    start_seconds, duration_seconds = first_number / rate, num_frames / rate
    first_sample = round(start_seconds * SAMPLE_RATE_HZ)
    samples = sound.read(first_sample, first_sample + round(duration_seconds * SAMPLE_RATE_HZ))
    status: list[StatusCode] = []
    if not videos:
        status.append("NO_FACE")
    if samples is None:
        status.append("NO_AUDIO")
    if float(duration_seconds) < config.min_seconds - 1e-6:
        status.append("TOO_SHORT")
    return MediaClip(
        segment=segment,
        flac=None if samples is None else encode_flac(samples),
        videos=videos,
        video=VideoInfo(
            width=info.width,
            height=info.height,
            fps_source=info.fps_source,
            fps=profile.frames_per_second,
            num_frames=num_frames,
            start_seconds=float(start_seconds),
            duration_seconds=float(duration_seconds),
        ),
        audio=AudioInfo(
            has_audio=samples is not None,
            sample_rate_hz=SAMPLE_RATE_HZ,
            num_samples=0 if samples is None else len(samples),
            offset_seconds=info.audio_offset_seconds,
        ),
        tracks=tracks,
        encoder=encoder_info(config.profile, profile),
        status=status or ["OK"],
    )


def _encode_videos(
    frames: Iterator[StoredFrame], tracks: list[Track], info: MediaInfo, config: BuildConfig, helpers: Helpers
) -> tuple[int, int, dict[str, bytes]]:
    """Encodes the whole frame or every track; returns the first stored index, the number of frames and the mp4s."""
    profile, rate = config.video, exact_rate(config.video.frames_per_second)
    whole = config.mode == "frame"
    size = info.scaled_size(profile.frame_short_side_pixels) if whole else (info.width, info.height)
    members = {"frame": size} if whole else {f"face{t.id}": (profile.side_pixels, profile.side_pixels) for t in tracks}
    encoders = {name: VideoEncoder(profile, rate, *member_size) for name, member_size in members.items()}

    def cut(numbered: tuple[int, StoredFrame]) -> tuple[int, dict[str, np.ndarray]]:
        place, frame = numbered
        if whole:
            return frame.number, {"frame": upright_rgb(frame.picture, size)}
        return frame.number, _cut_faces(UprightPicture(frame.picture, size), size, place, tracks, profile.side_pixels)

    first_number, count = 0, 0
    for count, (number, pictures) in enumerate(helpers.map(cut, enumerate(frames)), start=1):
        first_number = number if count == 1 else first_number
        for name, picture_HWC in pictures.items():
            encoders[name].add(picture_HWC)
    return first_number, count, {name: encoder.finish() for name, encoder in encoders.items()}


def _cut_faces(
    picture: UprightPicture, size: tuple[int, int], place: int, tracks: list[Track], side_pixels: int
) -> dict[str, np.ndarray]:
    """Returns the crop of every track that shows a face in stored frame `place` of the segment, by member name."""
    crops = {}
    for track in tracks:
        index = place - track.first_frame
        if 0 <= index < track.num_frames:
            centre, half_side = np.array(track.crop_centres[index]), track.crop_half_sides[index]
            region = read_square_region(picture.read, size, centre, half_side)
            crops[f"face{track.id}"] = scale_region(region, side_pixels)
    return crops


def _track(number: int, face: FacePath, config: BuildConfig, info: MediaInfo) -> Track:
    """Returns a face path as metadata."""
    return Track(
        id=number,
        identity=face.identity,
        first_frame=face.first_frame,
        num_frames=face.num_frames,
        boxes=np.round(face.boxes_T4, 2).tolist(),
        scores=np.round(face.scores_T, 4).tolist(),
        detected=face.detected_T.tolist(),
        area_ratio=round(float(face.areas.mean()) / (info.width * info.height), 6),
        crop_centres=face.crop_centres.tolist(),
        crop_half_sides=face.crop_half_sides(config.video.crop_factor).tolist(),
    )
