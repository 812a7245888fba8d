"""How a network's inputs are made of a file, for readers without avff: `preprocessing.json`, and sidecars of graphs."""

import dataclasses
from typing import Any

from avff.build_config import BuildConfig
from avff.config import IMAGENET_MEAN, IMAGENET_STD, Config
from avff.preprocess import POWER_FLOOR
from avff.strict_yaml import from_dict


def preprocessing(config: Config, build: dict[str, Any] | None) -> dict[str, Any]:
    """Returns, as plain values, all that decides what the network reads of a file.

    Args:
        build: how the clips of training were made; None where the checkpoint does not say.
    """
    clip = config.clip
    return {
        "clip": {
            **dataclasses.asdict(clip),
            "duration_seconds": clip.duration_seconds,
            "num_samples": clip.num_samples,
            "num_mel_frames": clip.num_mel_frames,
            "load_size": clip.load_size,
        },
        "video": {
            "input": "video_BTCHW float32: clip, frame, RGB, height, width",
            "frames": "by presentation time at the rate of `build`, then the nearest to every 1 / frames_per_second",
            "resize": f"square to {clip.load_size} and then {clip.image_size} pixels, bilinear, antialiased",
            "scale": 1 / 255,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "audio": {
            "input": "mel_BMF float32: clip, spectrogram frame, mel bin from low to high",
            "sound": f"mono, {clip.sample_rate_hz} Hz, in [-1, 1], from the first frame's time on",
            "frames": "frame m is centred on samples [m * hop, (m + 1) * hop); the ends are mirrored",
            "window": "periodic Hann",
            "filters": "triangles of peak 1 on the HTK mel scale, on power",
            "scale": f"natural log of (power + {POWER_FLOOR})",
            "mean": clip.mel_mean,
            "std": clip.mel_std,
        },
        "build": None if build is None else _resolved(build),
        "crop": "square about the face box, its side `crop_factor` times the box's longer side, bicubic to side_pixels",
        "windows": "evenly spaced from the first to the last possible start, at most half a clip apart",
    }


def _resolved(build: dict[str, Any]) -> dict[str, Any]:
    """Returns what a build did, with the values of its profile."""
    config = from_dict(BuildConfig, build, where="build")
    lengths = {"segment_seconds": config.segment_seconds, "min_seconds": config.min_seconds}
    return {"mode": config.mode, "profile": config.profile, **dataclasses.asdict(config.video), **lengths}
