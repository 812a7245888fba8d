"""A finetuned model that judges a clip in three lines: what `avff.load_model` returns.

Needs torch, numpy, einops, pyyaml, safetensors and, for files, av: nothing of training, shards or face detection.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avff.batch import UNKNOWN, AVBatch, ModelInputs
from avff.build_config import BuildConfig
from avff.checkpoints import load_classifier, read_checkpoint
from avff.config import Config
from avff.errors import CheckpointError, MediaError
from avff.evaluation.aggregate import DEFAULT_THRESHOLD, Logits, WindowScore, aggregate, probability
from avff.models import classifier
from avff.models.patches import patchify_audio, patchify_video
from avff.preprocess import Preprocess
from avff.run_folder import resolve_checkpoint
from avff.strict_yaml import from_dict

Shown = Literal["box", "middle square", "whole frame"]
Box = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class WindowPrediction:
    """What one window says; its times are those of the file."""

    start_seconds: float
    stop_seconds: float
    fake_probability: float
    video_fake_probability: float
    audio_fake_probability: float


@dataclass(frozen=True, kw_only=True)
class FilePrediction:
    """The verdict on one file.

    A stretch's score is the mean logit of its windows, and the file's is that of its worst stretch: a forgery anywhere
    makes the file a forgery. Files up to `segment_seconds` of the model's build are one stretch.

    Attributes:
        fake_probability: that picture, sound or both are fake.
        video_fake_probability, audio_fake_probability: of the same stretch, by the heads for picture and sound.
        threshold: from which on the verdict is FAKE.
        threshold_is_default: the model brings none, so 0.5 stands in.
        windows: in order of time.
        skipped: stretches that could not be judged, and why.
        shown: what of each picture the model was shown.
    """

    path: Path
    verdict: Literal["REAL", "FAKE"]
    fake_probability: float
    video_fake_probability: float
    audio_fake_probability: float
    threshold: float
    threshold_is_default: bool
    windows: tuple[WindowPrediction, ...]
    skipped: tuple[str, ...]
    shown: Shown

    def __str__(self) -> str:
        kind = "default threshold" if self.threshold_is_default else "threshold"
        lines = [
            f"{self.path}: {self.verdict}, fake with probability {self.fake_probability:.4f} ({kind} "
            f"{self.threshold:.4f}); picture {self.video_fake_probability:.4f}, sound {self.audio_fake_probability:.4f}; "
            f"{len(self.windows)} windows"
        ]
        if self.shown == "middle square":
            lines.append(
                "  the middle square of each picture was taken as a face crop; where it shows more, give box=(x0, y0, x1, y1)"
            )
        return "\n".join([*lines, *(f"  not judged: {words}" for words in self.skipped)])


class PortableDetector:
    """A classifier with its preprocessing.

    Attributes:
        config: of the network; `config.clip` is the geometry of a clip.
        build: how the clips of training were cut from files; None where the weights do not say.
        threshold: on the fake probability, as validation chose it; None where the weights bring none.
        about: sidecar of the weights: licences, parents, what they are.
        model: the network, in evaluation mode.
    """

    def __init__(
        self,
        model: classifier.Classifier,
        config: Config,
        *,
        build: BuildConfig | None,
        threshold: float | None,
        about: dict[str, Any],
        device: torch.device,
    ):
        self.model = model.to(device).eval()
        self.config = config
        self.build = build
        self.threshold = threshold
        self.about = about
        self.device = device
        self._preprocess = Preprocess(config.clip, config.data.augment)

    def predict(self, path: str | Path, box: Box | None = None, *, batch_size: int = 8) -> FilePrediction:
        """Judges a media file.

        Args:
            box: x0, y0, x1, y1 of the face in pixels of the upright picture, one for the whole file or one per picture
                of it. Without it the file is a face crop already (or the model reads whole frames).
            batch_size: windows at a time; no effect on scores.

        Raises:
            MediaError: the file cannot be decoded, has no sound, is too short for a window, or the box does not fit it.
            CheckpointError: the weights do not record how clips were cut.
        """
        from avff.exporting.reading import Skipped, Window, read_windows  # here: tensors can be judged without PyAV

        path = Path(path)
        boxes_P4 = None if box is None else np.atleast_2d(np.asarray(box, dtype=np.float64))
        waiting: list[Window] = []
        scores: list[WindowScore] = []
        skipped: list[Skipped] = []
        for found in read_windows(path, self.config.clip, self._require_build(), boxes_P4):
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            waiting.append(found)
            if len(waiting) == batch_size:
                scores += self._score(waiting)
                waiting = []
        scores += self._score(waiting)
        words = tuple(map(str, skipped))
        if not scores:
            raise MediaError(f"{path}: nothing in it can be judged: {'; '.join(words)}", reason=skipped[0].reason)
        whole: Shown = "whole frame" if self._require_build().mode == "frame" else "middle square"
        return self._verdict(path, scores, words, whole if box is None else "box")

    @torch.inference_mode()
    def __call__(self, video_BTHWC: Tensor, waveform_BN: Tensor) -> classifier.Logits:
        """Scores clips.

        Args:
            video_BTHWC: uint8 RGB squares of any size, `config.clip.num_frames` frames at the clip's rate.
            waveform_BN: float32 in [-1, 1], 16 kHz mono over the same time, `config.clip.num_samples`.

        Returns:
            overall_B, video_B, audio_B: log-odds of fake.

        Raises:
            ConfigError: frames or samples are not as many as the model reads.
        """
        return self.model(*self._inputs(video_BTHWC, waveform_BN)[:3])

    @torch.inference_mode()
    def features(self, video_BTHWC: Tensor, waveform_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the encoders' tokens by slice of time, (B, S, L, D) of picture and of sound; arguments as for a call."""
        inputs, model = self._inputs(video_BTHWC, waveform_BN), self.config.model
        video_BSLD = self.model.video_encoder(patchify_video(inputs.video_BTCHW, model), inputs.seed_B)
        return video_BSLD, self.model.audio_encoder(patchify_audio(inputs.mel_BMF, model), inputs.seed_B)

    def _inputs(self, video_BTHWC: Tensor, waveform_BN: Tensor) -> ModelInputs:
        batch = len(video_BTHWC)
        zeros_B = torch.zeros(batch, dtype=torch.int64, device=self.device)
        unknown_B = zeros_B + UNKNOWN
        clips = AVBatch(
            keys=("",) * batch,
            tracks=(-1,) * batch,
            start_seconds_B=zeros_B.double(),
            seed_B=zeros_B,
            video_BTHWC=video_BTHWC.to(self.device),
            waveform_BN=waveform_BN.to(self.device),
            is_fake_B=unknown_B,
            video_is_fake_B=unknown_B,
            audio_is_fake_B=unknown_B,
        )
        return self._preprocess(clips, training=False)

    def _score(self, windows: Sequence[Any]) -> list[WindowScore]:
        if not windows:
            return []
        heads = self(
            torch.from_numpy(np.stack([window.video_THWC for window in windows])),
            torch.from_numpy(np.stack([window.waveform_N for window in windows])),
        )
        logits_BH = torch.stack(heads, dim=1).double().cpu().tolist()
        return [
            WindowScore(str(window.segment), -1, window.start_seconds, Logits(*logits))
            for window, logits in zip(windows, logits_BH, strict=True)
        ]

    def _verdict(
        self, path: Path, scores: Iterable[WindowScore], skipped: tuple[str, ...], shown: Shown
    ) -> FilePrediction:
        scores = list(scores)
        decisive = max(aggregate(scores).values(), key=lambda score: score.logits.overall).logits
        threshold = DEFAULT_THRESHOLD if self.threshold is None else self.threshold
        return FilePrediction(
            path=path,
            verdict="FAKE" if probability(decisive.overall) >= threshold else "REAL",
            **_probabilities(decisive),
            threshold=threshold,
            threshold_is_default=self.threshold is None,
            windows=tuple(
                WindowPrediction(
                    start_seconds=score.start_seconds,
                    stop_seconds=score.start_seconds + self.config.clip.duration_seconds,
                    **_probabilities(score.logits),
                )
                for score in scores
            ),
            skipped=skipped,
            shown=shown,
        )

    def _require_build(self) -> BuildConfig:
        if self.build is None:
            raise CheckpointError(
                "the weights do not record how their clips were cut (`build`), so a file cannot be cut the same way; export "
                "them from the run folder that `avff train` wrote, or hand clips over as tensors"
            )
        return self.build


def _probabilities(logits: Logits) -> dict[str, float]:
    """Returns the three fields that a file and a window share."""
    assert logits.video is not None and logits.audio is not None, "a classifier has all three heads"
    return {
        "fake_probability": probability(logits.overall),
        "video_fake_probability": probability(logits.video),
        "audio_fake_probability": probability(logits.audio),
    }


def load_model(name: str | Path, *, device: str | torch.device = "cpu") -> PortableDetector:
    """Opens a model folder, `RUN[:best|last|step-N][:raw]` or a `.safetensors` file of a classifier; see avff.load_model."""
    checkpoint = read_checkpoint(resolve_checkpoint(str(name)))
    build = checkpoint.build
    where = f"{checkpoint.reference.weights_path}: build"
    return PortableDetector(
        load_classifier(checkpoint),
        checkpoint.config,
        build=None if build is None else from_dict(BuildConfig, build, where=where),
        threshold=checkpoint.reference.threshold,
        about=checkpoint.sidecar,
        device=torch.device(device),
    )
