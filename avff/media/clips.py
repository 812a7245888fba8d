"""A raw media file into the members of its samples: the one path that building and prediction share.

The file is decoded once to look (times of the stored frames, faces) and once to cut, so that never more than a few
full-size pictures are in memory, however long the file is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from avff.build_config import BuildConfig
from avff.media.audio import SAMPLE_RATE_HZ, AudioLine
from avff.media.boxes import BoxTracks, box_paths
from avff.media.crops import FacePath, square_crop
from avff.media.encode import VideoEncoder, encode_flac, encoder_info
from avff.media.faces import FaceScanner
from avff.media.reader import MediaInfo, probe, read_frames, upright_rgb
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
    """Cuts one media file into encoded segments.

    Args:
        boxes: the file's own face boxes; needed in mode `boxes`, unused otherwise.

    Returns:
        The segments in order. A remainder shorter than `min_seconds` is dropped; a whole file that is shorter is kept
        with status TOO_SHORT.

    Raises:
        MediaError: the file cannot be decoded to its end, or has no video stream.
    """
    info = probe(path)
    rate = exact_rate(config.video.frames_per_second)
    per_segment = max(1, round(config.segment_seconds * rate))
    faces = _find_faces(path, config, info, rate, per_segment, boxes)
    sound = AudioLine(path, info)
    clips = []
    for segment, frames in split_segments(sample_frames(read_frames(path), rate), per_segment):
        clip = _make_clip(segment, frames, faces.get(segment, []), sound, info, config)
        if segment == 0 or "TOO_SHORT" not in clip.status:
            clips.append(clip)
    return clips


def _find_faces(
    path: Path, config: BuildConfig, info: MediaInfo, rate: Fraction, per_segment: int, boxes: BoxTracks | None
) -> dict[int, list[FacePath]]:
    """Looks through the file once; returns the accepted face tracks of every segment, largest first."""
    if config.mode == "frame":
        return {}
    scanner = FaceScanner(config.faces, info, float(rate)) if config.mode == "faces" else None
    shown = read_frames(path) if scanner is None else scanner.watch(read_frames(path))
    faces = {}
    for segment, frames in split_segments(sample_frames(shown, rate), per_segment):
        times_T = np.array([float(frame.source_seconds) for frame in frames])
        stop_seconds = float((segment + 1) * per_segment / rate)
        if scanner is None:
            faces[segment] = box_paths(boxes or {}, times_T)
        else:
            faces[segment] = scanner.take_tracks(times_T, stop_seconds)
    return faces


def _make_clip(
    segment: int,
    frames: Iterator[StoredFrame],
    faces: list[FacePath],
    sound: AudioLine,
    info: MediaInfo,
    config: BuildConfig,
) -> MediaClip:
    profile, rate = config.video, exact_rate(config.video.frames_per_second)
    tracks = [_track(number, face, config, info) for number, face in enumerate(faces)]
    first_number, num_frames, videos = _encode_videos(frames, tracks, info, config)
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
    frames: Iterator[StoredFrame], tracks: list[Track], info: MediaInfo, config: BuildConfig
) -> tuple[int, int, dict[str, bytes]]:
    """Encodes the whole frame or every track; returns the first stored index, the number of frames and the mp4s."""
    profile, rate = config.video, exact_rate(config.video.frames_per_second)
    whole = config.mode == "frame"
    size = info.scaled_size(profile.frame_short_side_pixels) if whole else (info.width, info.height)
    members = {"frame": size} if whole else {f"face{t.id}": (profile.side_pixels, profile.side_pixels) for t in tracks}
    encoders = {name: VideoEncoder(profile, rate, *member_size) for name, member_size in members.items()}
    first_number, count = 0, 0
    for count, frame in enumerate(frames, start=1):
        first_number = frame.number if count == 1 else first_number
        if not encoders:
            continue
        picture_HWC = upright_rgb(frame.picture, size)
        if whole:
            encoders["frame"].add(picture_HWC)
        for track in tracks:
            place = count - 1 - track.first_frame
            if 0 <= place < track.num_frames:
                centre, half_side = np.array(track.crop_centres[place]), track.crop_half_sides[place]
                encoders[f"face{track.id}"].add(square_crop(picture_HWC, centre, half_side, profile.side_pixels))
    return first_number, count, {name: encoder.finish() for name, encoder in encoders.items()}


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
