"""What is known of a clip without looking at it, and what an untrained network makes of it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from avff.batch import Clip
from avff.config import Config
from avff.data.decode import decode_sound
from avff.data.samples import Sample
from avff.data.views import AVView
from avff.inference.loading import SILENCE_LEVEL, leading_silence_seconds
from avff.models.build import build_classifier
from avff.models.patches import patchify_audio, patchify_video
from avff.preprocess import Preprocess
from avff.schema import Track


def metadata_features(sample: Sample) -> dict[str, float]:
    """Returns everything that is neither pixels nor single audio samples: sizes, lengths, levels, boxes, detector scores.

    The JSON member's own size is left out, since labels are written in it.
    """
    metadata = sample.metadata
    seconds = max(metadata.video.duration_seconds, 1e-6)
    videos = [len(content) for name, content in sample.members.items() if name.endswith(".mp4")]
    flac_bytes = len(sample.members.get("flac", b""))
    return {
        "segment": metadata.segment,
        "duration_seconds": metadata.video.duration_seconds,
        "start_seconds": metadata.video.start_seconds,
        "width": metadata.video.width,
        "height": metadata.video.height,
        "fps_source": metadata.video.fps_source,
        "num_samples": metadata.audio.num_samples,
        "offset_seconds": metadata.audio.offset_seconds,
        "flac_bytes": flac_bytes,
        "flac_bytes_per_second": flac_bytes / seconds,
        "video_bytes": sum(videos),
        "video_bytes_per_second": sum(videos) / seconds,
        "first_video_bytes": videos[0] if videos else np.nan,
        "num_tracks": len(metadata.tracks),
        **_level_features(sample),
        **(_track_features(metadata.tracks[0]) if metadata.tracks else {}),
    }


def feature_matrix(features: Sequence[dict[str, float]], names: Sequence[str]) -> np.ndarray:
    """Returns (N, D) float64; NaN where a clip lacks a feature."""
    return np.array([[one.get(name, np.nan) for name in names] for one in features], dtype=np.float64)


class RandomFeatures:
    """Mean tokens of networks with random weights, one network per seed.

    Args:
        config: clip and model; its own seed is replaced.
    """

    def __init__(self, config: Config, seeds: Sequence[int], device: torch.device):
        self.config = config
        self.device = device
        self.view = AVView(config.clip)
        self.preprocess = Preprocess(config.clip, config.data.augment)
        self.models = [build_classifier(dataclasses.replace(config, seed=seed)).eval().to(device) for seed in seeds]

    @torch.inference_mode()
    def __call__(self, clips: Sequence[Clip]) -> np.ndarray:
        """Returns (seeds, clips, 2 x width): the mean video and the mean audio token of every clip."""
        batch = self.view.collate(clips)
        moved = batch._replace(
            video_BTHWC=batch.video_BTHWC.to(self.device),
            waveform_BN=batch.waveform_BN.to(self.device),
            seed_B=batch.seed_B.to(self.device),
        )
        inputs = self.preprocess(moved, training=False)
        video_BLP = patchify_video(inputs.video_BTCHW, self.config.model)
        audio_BLP = patchify_audio(inputs.mel_BMF, self.config.model)
        features = []
        for model in self.models:
            video_BD = model.video_encoder(video_BLP, inputs.seed_B).mean(dim=(1, 2))
            audio_BD = model.audio_encoder(audio_BLP, inputs.seed_B).mean(dim=(1, 2))
            features.append(torch.cat([video_BD, audio_BD], dim=1).float().cpu().numpy())
        return np.stack(features)


def _level_features(sample: Sample) -> dict[str, float]:
    audio = sample.metadata.audio
    if not audio.has_audio:
        return {}
    where = f"sample {sample.metadata.key!r}: flac"
    sound_N = decode_sound(sample.members["flac"], audio.num_samples, audio.sample_rate_hz, where)
    return {
        "rms_decibels": 10 * float(np.log10(np.mean(sound_N.astype(np.float64) ** 2) + 1e-12)),
        "peak": float(np.abs(sound_N).max(initial=0.0)),
        "leading_silence_seconds": leading_silence_seconds(sound_N, audio.sample_rate_hz),
        "trailing_silence_seconds": leading_silence_seconds(sound_N[::-1], audio.sample_rate_hz),
        "silent_share": float(np.mean(np.abs(sound_N) < SILENCE_LEVEL)) if len(sound_N) else 1.0,
    }


def _track_features(track: Track) -> dict[str, float]:
    """Of the largest face: where its box is, how it moves, how sure the detector was."""
    boxes_T4 = np.array(track.boxes)
    scores_T = np.array(track.scores)
    centres_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2
    width_T, height_T = boxes_T4[:, 2] - boxes_T4[:, 0], boxes_T4[:, 3] - boxes_T4[:, 1]
    steps_T = np.linalg.norm(np.diff(centres_T2, axis=0), axis=1) if len(centres_T2) > 1 else np.zeros(1)
    return {
        "first_frame": track.first_frame,
        "track_frames": track.num_frames,
        "area_ratio": track.area_ratio,
        "box_x": float(centres_T2[:, 0].mean()),
        "box_y": float(centres_T2[:, 1].mean()),
        "box_width": float(width_T.mean()),
        "box_height": float(height_T.mean()),
        "box_aspect": float((width_T / height_T).mean()),
        "box_aspect_std": float((width_T / height_T).std()),
        "box_size_std": float(np.sqrt(width_T * height_T).std()),
        "box_step_mean": float(steps_T.mean()),
        "box_step_max": float(steps_T.max()),
        "score_mean": float(scores_T.mean()),
        "score_min": float(scores_T.min()),
        "score_std": float(scores_T.std()),
        "detected_share": float(np.mean(track.detected)),
        "crop_half_side": float(np.mean(track.crop_half_sides)),
    }
