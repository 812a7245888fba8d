"""The metadata of one stored sample: what `<key>.json` holds, validated on write and on read.

Times are seconds inside the stored sample unless a name says source; ranges are half open. Labels are 0 real,
1 fake, None unknown and never guessed.
"""

import contextlib
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from avff.errors import ShardError

SCHEMA_VERSION = 1
KEY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
Label = Literal[0, 1] | None
Category = Literal["RVRA", "RVFA", "FVRA", "FVFA"]
StatusCode = Literal["OK", "NO_FACE", "NO_AUDIO", "TOO_SHORT"]
Split = Literal["train", "val", "test", ""]


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The stored video members; all of a sample share rate and length."""

    width: int
    """Of the source, upright (after rotation), in pixels."""
    height: int
    fps_source: float
    """Average rate of the source."""
    fps: float
    """Constant rate as stored."""
    num_frames: int
    """Stored frames of the sample; a face track may cover fewer."""
    start_seconds: float
    """Where the sample starts in the source."""
    duration_seconds: float


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    has_audio: bool
    sample_rate_hz: int = 16000
    num_samples: int = 0
    offset_seconds: float = 0.0
    """Start of the source's sound relative to its picture; already corrected in the stored samples."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """One face through time, on the sample's stored frames; lists have `num_frames` entries."""

    id: int
    """N of the member `<key>.face<N>.mp4`."""
    identity: int
    """Same number for tracks of one person within a source."""
    first_frame: int
    """Stored frame of the sample at which this track's member starts."""
    num_frames: int
    boxes: list[list[float]]
    """x0, y0, x1, y1 per frame in upright source pixels, smoothed."""
    scores: list[float]
    """Detector probability per frame; of the nearest detection where interpolated."""
    detected: list[bool]
    """True where the detector saw the face, False where the box is interpolated."""
    area_ratio: float
    """Mean share of the frame that the box covers."""
    crop_centres: list[list[float]]
    """x, y per frame in upright source pixels."""
    crop_half_sides: list[float]
    """Half the side of the square crop per frame, in upright source pixels."""
    is_fake: Label = None
    is_speaker: bool | None = None


@dataclass(frozen=True, kw_only=True)
class FakeSegments:
    """Forged stretches as [start, stop) pairs in seconds of the sample, where the source names them."""

    video: list[list[float]] = field(default_factory=list)
    audio: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """How video was encoded; one signature across real and fake clips."""

    profile: str
    codec: str
    parameters: dict[str, str | int | float]


@dataclass(frozen=True, kw_only=True)
class SampleMetadata:
    """Everything known about one sample."""

    schema_version: int = SCHEMA_VERSION
    key: str
    source_key: str
    """Joins the segments of one video."""
    dataset: str
    split: Split
    source_path: str
    """Relative to the input root."""
    source_sha256: str
    segment: int
    group_ids: list[str]
    """Persons and original videos; splits are disjoint in each."""
    is_fake: Label
    video_is_fake: Label
    audio_is_fake: Label
    category: Category | None
    methods: list[str]
    fake_segments_seconds: FakeSegments | None
    """None: unknown; empty lists: known to hold none."""
    video: VideoInfo
    audio: AudioInfo
    tracks: list[Track]
    encoder: EncoderInfo
    status: list[StatusCode]
    """["OK"], or every reason why a model cannot read both modalities of it."""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        if self.schema_version != SCHEMA_VERSION:
            problems.append(
                f"schema_version {self.schema_version}, this avff reads {SCHEMA_VERSION}; rebuild the shards"
            )
        if not KEY_PATTERN.fullmatch(self.key):
            problems.append(f"key does not match {KEY_PATTERN.pattern}")
        if not self.status or ("OK" in self.status and len(self.status) > 1):
            problems.append(f"status {self.status} has to be ['OK'] or a list of reasons")
        if len({track.id for track in self.tracks}) != len(self.tracks):
            problems.append(f"track ids {[track.id for track in self.tracks]} are not unique")
        for track in self.tracks:
            for name in ("boxes", "scores", "detected", "crop_centres", "crop_half_sides"):
                if len(getattr(track, name)) != track.num_frames:
                    problems.append(
                        f"track {track.id}: {name} has {len(getattr(track, name))} entries for {track.num_frames} frames"
                    )
            if track.first_frame < 0 or track.first_frame + track.num_frames > self.video.num_frames:
                problems.append(
                    f"track {track.id} covers frames [{track.first_frame}, {track.first_frame + track.num_frames}) "
                    f"of {self.video.num_frames}"
                )
        if self.category is not None:
            expected = (int(self.category[0] == "F"), int(self.category[2] == "F"))
            if (self.video_is_fake, self.audio_is_fake) != expected:
                problems.append(
                    f"category {self.category} contradicts video_is_fake={self.video_is_fake}, audio_is_fake={self.audio_is_fake}"
                )
        if self.is_fake == 0 and 1 in (self.video_is_fake, self.audio_is_fake):
            problems.append("is_fake is 0 but a modality is labelled fake")
        if problems:
            raise ShardError(f"sample {self.key!r}: " + "; ".join(problems))


def complete_labels(
    is_fake: Label, video_is_fake: Label, audio_is_fake: Label
) -> tuple[Label, Label, Label, Category | None]:
    """Fills in what follows from the labels given, and guesses nothing.

    Returns:
        is_fake, video_is_fake, audio_is_fake, category. A fake modality makes the clip fake, two real ones make it
        real, and a real clip has two real modalities; a fake clip says nothing about which modality is.

    Raises:
        ShardError: the labels contradict each other.
    """
    if is_fake == 0:
        if 1 in (video_is_fake, audio_is_fake):
            raise ShardError(f"is_fake=0 contradicts video_is_fake={video_is_fake}, audio_is_fake={audio_is_fake}")
        video_is_fake = audio_is_fake = 0
    if is_fake == 1 and video_is_fake == 0 and audio_is_fake == 0:
        raise ShardError("is_fake=1 contradicts video_is_fake=0 and audio_is_fake=0")
    if is_fake is None:
        if 1 in (video_is_fake, audio_is_fake):
            is_fake = 1
        elif video_is_fake == 0 and audio_is_fake == 0:
            is_fake = 0
    category: Category | None = None
    if video_is_fake is not None and audio_is_fake is not None:
        categories: dict[tuple[int, int], Category] = {(0, 0): "RVRA", (0, 1): "RVFA", (1, 0): "FVRA", (1, 1): "FVFA"}
        category = categories[(video_is_fake, audio_is_fake)]
    return is_fake, video_is_fake, audio_is_fake, category


def to_json(metadata: SampleMetadata) -> bytes:
    """Returns compact UTF-8 JSON with the fields in schema order."""
    return json.dumps(dataclasses.asdict(metadata), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def from_json(data: bytes | str, where: str) -> SampleMetadata:
    """Reads and validates metadata.

    Args:
        where: shard and member, named in every message.

    Raises:
        ShardError: not JSON, unknown or missing fields, wrong types, or an impossible combination.
    """
    try:
        values = json.loads(data)
    except ValueError as error:
        raise ShardError(f"{where}: not valid JSON: {error}") from error
    try:
        return _builder(SampleMetadata)(values, "")
    except ShardError as error:
        raise ShardError(f"{where}: {error}") from error


Builder = Callable[[Any, str], Any]
"""Turns a JSON value into a typed one; every mismatch is a ShardError that names the field."""


@cache
def _builder(kind: Any) -> Builder:
    """Returns the builder of a type, made once: a loader reads thousands of numbers per sample through it."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda value, name: value
    if dataclasses.is_dataclass(kind):
        return _dataclass_builder(typing.cast(type, kind))
    if origin in (typing.Union, types.UnionType):
        return _union_builder(kind, choices)
    if origin is Literal:
        return _literal_builder(choices)
    if origin is list:
        item = _builder(choices[0])
        return lambda value, name: [item(one, name) for one in _check(list, value, name)]
    if origin is dict:
        item = _builder(choices[1])
        return lambda value, name: {k: item(v, f"{name}{k}.") for k, v in _check(dict, value, name).items()}
    if kind is float:
        return _build_float
    return lambda value, name: _check(kind, value, name)


def _dataclass_builder(kind: type) -> Builder:
    fields = {name: _builder(hint) for name, hint in typing.get_type_hints(kind).items()}
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }

    def build(value: Any, name: str) -> Any:
        _check(dict, value, name or "metadata")
        if unknown := value.keys() - fields.keys():
            raise ShardError(f"unknown field {', '.join(sorted(name + key for key in unknown))}")
        if missing := required - value.keys():
            raise ShardError(f"missing field {', '.join(sorted(name + key for key in missing))}")
        return kind(**{key: fields[key](one, f"{name}{key}.") for key, one in value.items()})

    return build


def _union_builder(kind: Any, choices: tuple[Any, ...]) -> Builder:
    """Only `X | None` and unions of plain types occur, so the first that fits is the one meant."""
    builders = [_builder(choice) for choice in choices if choice is not type(None)]
    takes_none = type(None) in choices

    def build(value: Any, name: str) -> Any:
        if value is None and takes_none:
            return None
        if len(builders) == 1:
            return builders[0](value, name)
        for builder in builders:
            with contextlib.suppress(ShardError):
                return builder(value, name)
        raise ShardError(f"{name.rstrip('.')}: {value!r} fits none of {kind}")

    return build


def _literal_builder(choices: tuple[Any, ...]) -> Builder:
    def build(value: Any, name: str) -> Any:
        if value in choices and not isinstance(value, bool):
            return value
        raise ShardError(f"{name.rstrip('.')}: {value!r} is not one of {choices}")

    return build


def _build_float(value: Any, name: str) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise ShardError(f"{name.rstrip('.')}: expected float, found {value!r}")


def _check(kind: type, value: Any, name: str) -> Any:
    """Returns the value if its type is exactly `kind`; a bool is no int."""
    if type(value) is kind:
        return value
    raise ShardError(f"{name.rstrip('.')}: expected {kind.__name__}, found {value!r}")
