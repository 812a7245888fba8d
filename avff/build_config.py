"""Every knob of shard building: how raw media become stored samples."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from avff.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VideoProfile:
    """How video is stored in shards: one signature for real and fake clips, or the codec becomes the label."""

    frames_per_second: float
    side_pixels: int
    """Side of a square face crop; short side of a whole frame is `frame_short_side_pixels`."""
    crop_factor: float
    """Side of the crop as a multiple of the longer side of the face box."""
    pixel_format: Literal["yuv420p", "yuv444p"]
    crf: int
    gop_frames: int
    tune: str = "fastdecode"
    preset: str = "medium"
    frame_short_side_pixels: int = 256


PROFILES: dict[str, VideoProfile] = {
    # Fast to decode: the view's own rate, for pretraining.
    "pretrain": VideoProfile(
        frames_per_second=5.0, side_pixels=256, crop_factor=1.3, pixel_format="yuv420p", crf=18, gop_frames=8
    ),
    # Keeps the traces that a detector looks for.
    "evidence": VideoProfile(
        frames_per_second=25.0, side_pixels=384, crop_factor=1.8, pixel_format="yuv444p", crf=12, gop_frames=8
    ),
}


@dataclass(frozen=True, kw_only=True)
class FaceConfig:
    """How faces are found and followed; the defaults suit talking heads."""

    detect_every_frames: int = 5
    """MTCNN looks at every k-th source frame; boxes between are interpolated."""
    detect_max_side_pixels: int = 640
    """Longest side of the copy that the detector sees."""
    min_probability: float = 0.9
    min_detections: int = 3
    """Confident detections that a track needs."""
    min_track_seconds: float = 0.5
    min_face_pixels: int = 40
    """Smallest box side in source pixels that counts as a face."""
    max_tracks: int = 4
    """Largest tracks kept per clip."""
    smooth_seconds: float = 0.4
    """Standard deviation of the Gaussian that smooths boxes over time."""
    identity_distance: float = 0.6
    """Largest distance of two dlib embeddings of one person."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How raw media become samples; a checkpoint records it, so that prediction makes clips the same way."""

    mode: Literal["faces", "frame", "boxes"] = "faces"
    """`faces` detects and tracks; `frame` stores the whole frame; `boxes` takes the user's own box file."""
    profile: str = "pretrain"
    """Name in PROFILES; the fields below override single values."""
    frames_per_second: float | None = None
    side_pixels: int | None = None
    crop_factor: float | None = None
    crf: int | None = None
    segment_seconds: float = 10.0
    """Longer videos are cut into segments of this length."""
    min_seconds: float = 3.2
    """Shorter segments get status TOO_SHORT; the rest of a cut video that is shorter is dropped."""
    faces: FaceConfig = field(default_factory=FaceConfig)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigError(f"profile {self.profile!r} is unknown; choose one of {', '.join(PROFILES)}")
        side = self.video.side_pixels
        if side < 64 or side % 2:
            raise ConfigError(f"side_pixels is {side}; it has to be even and at least 64, or decord fails")
        if not self.segment_seconds > 0:
            raise ConfigError(f"segment_seconds is {self.segment_seconds}; it has to be positive")
        if not 0 < self.min_seconds <= self.segment_seconds:
            raise ConfigError(
                f"min_seconds {self.min_seconds} has to be positive and at most segment_seconds {self.segment_seconds}"
            )

    @property
    def video(self) -> VideoProfile:
        """The profile with this build's overrides."""
        overrides = {n: getattr(self, n) for n in ("frames_per_second", "side_pixels", "crop_factor", "crf")}
        return dataclasses.replace(PROFILES[self.profile], **{n: v for n, v in overrides.items() if v is not None})
