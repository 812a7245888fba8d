"""Media: bytes, decode time and fidelity of stored video, by encoder setting and library.

The profiles of avff/build_config.py and neighbours of each, which differ in one value (`pretrain gop_frames=4`),
encode the same pictures: the centre square of every file, at the rate and size of the profile, up to 10 s of it.
Each library then decodes one random clip of every video per round, all settings in turn. milliseconds is the CPU
time per clip, which is the time of one core however busy the others are; to_profile compares it with the profile's
own setting, decoded by the same library in the same round, to_decord with decord's time for the same clips. psnr_db
is measured on RGB against what was encoded.
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from avff.bench.report import write_report
from avff.build_config import PROFILES, VideoProfile
from avff.config import ClipConfig, DecoderName
from avff.data.decode import decode_frames
from avff.data.decoders import installed_decoders
from avff.errors import ConfigError, MediaError
from avff.media.encode import VideoEncoder
from avff.media.reader import probe, read_frames, upright_rgb
from avff.media.sampling import exact_rate, sample_frames
from avff.media.synthetic import SplitPlan, generate_talking_heads
from avff.windows import centre_square, frame_indices, last_start

NEIGHBOURS: dict[str, dict[str, list[Any]]] = {
    "pretrain": {"gop_frames": [4, 16], "crf": [20, 23], "tune": ["film"], "preset": ["veryfast", "slower"]},
    "evidence": {"gop_frames": [4, 16], "crf": [15, 18], "tune": ["film"]},
}
"""Other values of single fields, by profile."""

MEDIA = (".mp4", ".mov", ".mkv", ".avi", ".webm")
SECONDS = 10.0


class Candidate(NamedTuple):
    """One encoder setting.

    Attributes:
        profile: name of the profile that it is, or that it differs from in one value.
        change: that value, empty for the profile itself.
    """

    profile: str
    change: str
    video: VideoProfile


class Encoded(NamedTuple):
    """One video as one candidate stores it."""

    content: bytes
    num_frames: int
    psnr_db: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="FOLDER", help="videos to encode (default: generated ones)")
    parser.add_argument("--videos", type=int, default=4, help="largest number of videos that are encoded (default 4)")
    parser.add_argument(
        "--profiles",
        nargs="+",
        choices=list(PROFILES),
        default=list(PROFILES),
        help="profiles to encode with (default: all)",
    )
    parser.add_argument(
        "--decoders",
        nargs="+",
        choices=get_args(DecoderName),
        help="libraries to decode with (default: those that are installed)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="clips decoded of each video (default 5)")


def run(arguments: argparse.Namespace) -> str:
    """Encodes and decodes with every setting; returns the table."""
    clip, decoders = ClipConfig(), arguments.decoders or installed_decoders()
    folder = arguments.input or generated_heads(arguments.folder / "heads", arguments.videos)
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    for profile in arguments.profiles:
        sources = dict(islice(read_sources(folder, PROFILES[profile], clip), arguments.videos))
        if not sources:
            raise ConfigError(f"{folder}: holds no video of {clip.duration_seconds} s or more; name another --input")
        names = names or list(sources)
        videos = {c: [encode(c.video, source) for source in sources.values()] for c in candidates(profile)}
        rows += measure(videos, clip, decoders, arguments.rounds)
    about = {"videos": names, "rounds": arguments.rounds, "clip_frames": clip.num_frames}
    return write_report(arguments.folder / "media.json", rows, about)


def candidates(profile: str) -> list[Candidate]:
    """Returns a profile and its neighbours."""
    own = PROFILES[profile]
    changes = [(name, value) for name, values in NEIGHBOURS[profile].items() for value in values]
    others = [
        Candidate(profile, f"{name}={value}", dataclasses.replace(own, **{name: value})) for name, value in changes
    ]
    return [Candidate(profile, "", own), *others]


def generated_heads(folder: Path, num_videos: int) -> Path:
    people = num_videos + num_videos % 2
    plan = {"train": SplitPlan(num_people=people, clips_per_person={"RVRA": 1})}
    generate_talking_heads(folder / str(people), plan=plan, progress=False)
    return folder / str(people)


def read_sources(folder: Path, profile: VideoProfile, clip: ClipConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and pictures (T, side, side, 3) of the videos that are long enough for a clip."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA):
        try:
            video_THWC = read_square(path, profile)
        except MediaError:
            continue
        if len(video_THWC) >= clip.duration_seconds * profile.frames_per_second:
            yield path.name, video_THWC


def read_square(path: Path, profile: VideoProfile) -> np.ndarray:
    """Returns the centre square of the first pictures, uint8, at the rate and size of the profile."""
    info = probe(path)
    frames = islice(
        sample_frames(read_frames(path), exact_rate(profile.frames_per_second)),
        round(SECONDS * profile.frames_per_second),
    )
    size = (info.width, info.height)
    squares = [centre_square(upright_rgb(frame.picture, size)[None], profile.side_pixels) for frame in frames]
    return np.concatenate(squares)


def encode(profile: VideoProfile, source_THWC: np.ndarray) -> Encoded:
    encoder = VideoEncoder(profile, exact_rate(profile.frames_per_second), source_THWC.shape[2], source_THWC.shape[1])
    for frame_HWC in source_THWC:
        encoder.add(frame_HWC)
    content, count = encoder.finish(), len(source_THWC)
    decoded_THWC = decode_frames(content, np.arange(count), count, "bench")
    mean_square = np.mean((decoded_THWC.astype(np.float32) - source_THWC) ** 2)
    return Encoded(content, count, 10 * math.log10(255**2 / max(float(mean_square), 1e-9)))


def measure(
    videos: dict[Candidate, list[Encoded]], clip: ClipConfig, decoders: list[DecoderName], num_rounds: int
) -> list[dict[str, Any]]:
    """Returns a row per candidate and decoder; in a round, each of them decodes the same window of each video."""
    rng = np.random.default_rng(0)
    milliseconds: dict[tuple[Candidate, DecoderName], list[float]] = defaultdict(list)
    for number in range(num_rounds + 1):
        place = rng.random()
        for candidate, encoded in videos.items():
            for decoder in decoders:
                spent = [time_clip(one, candidate.video, clip, decoder, place) for one in encoded]
                if number:  # the first round fills caches
                    milliseconds[candidate, decoder].append(1000 * statistics.mean(spent))
    own = next(candidate for candidate in videos if not candidate.change)
    return [
        {
            "setting": f"{candidate.profile} {candidate.change}".strip(),
            "decoder": decoder,
            "kilobytes_per_second": kilobytes_per_second(encoded, candidate.video),
            "milliseconds": statistics.median(milliseconds[candidate, decoder]),
            "to_profile": _ratio(milliseconds[candidate, decoder], milliseconds[own, decoder]),
            "to_decord": _ratio(milliseconds[candidate, decoder], milliseconds[candidate, "decord"]),
            "psnr_db": statistics.mean(one.psnr_db for one in encoded),
        }
        for candidate, encoded in videos.items()
        for decoder in decoders
    ]


def time_clip(video: Encoded, profile: VideoProfile, clip: ClipConfig, decoder: DecoderName, place: float) -> float:
    """Returns the CPU seconds of decoding one clip.

    Args:
        place: of its start among all possible ones, in [0, 1).
    """
    rate = profile.frames_per_second
    start = int(place * (last_start(video.num_frames, video.num_frames / rate, rate, clip) + 1))
    frames = frame_indices(start, rate, clip)
    before = time.process_time()
    decode_frames(video.content, frames, video.num_frames, "bench", decoder)
    return time.process_time() - before


def _ratio(milliseconds: list[float], others: list[float]) -> float | None:
    """Returns the median ratio of the same rounds; None where the others were not measured."""
    return statistics.median(np.divide(milliseconds, others).tolist()) if others else None


def kilobytes_per_second(videos: list[Encoded], profile: VideoProfile) -> float:
    seconds = sum(one.num_frames for one in videos) / profile.frames_per_second
    return sum(len(one.content) for one in videos) / seconds / 1000
