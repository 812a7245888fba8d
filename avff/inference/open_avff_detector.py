"""Open-AVFF's published classifier (its stage 3) as a detector, so that its users keep their scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avff.building.sources import single_source
from avff.config import IMAGENET_MEAN, IMAGENET_STD
from avff.data.selection import StoredSample
from avff.data.shards import ShardDirectory
from avff.evaluation.aggregate import Logits, WindowScore
from avff.files import sha256_of
from avff.inference.detector import FilePart
from avff.inference.loading import DECODE_TIMEOUT_SECONDS
from avff.inference.open_avff_view import FrameFit, OpenAvffClip, OpenAvffView, fit_frame, spread_frames, whole_mel
from avff.media.whole import read_native_sound, read_spread_pictures
from avff.models.detectors.open_avff import FAKE, OpenAvffClassifier
from avff.models.detectors.open_avff_files import load_open_avff_classifier

LOOKS = {"crop": "224 pixels cut from the centre", "resize": "squeezed to 224 pixels"}


@dataclass(frozen=True, kw_only=True)
class OpenAvffDetector:
    """The classifier in evaluation mode, each clip attended as a batch of one; see `Detector`.

    It has one score, no heads for picture and sound, and no threshold chosen on validation.
    """

    weights_path: Path
    checkpoint_sha256: str
    fit: FrameFit
    device: torch.device
    model: OpenAvffClassifier
    name: str = "open-avff"
    threshold: None = None
    config: None = None
    decode_timeout_seconds: float = DECODE_TIMEOUT_SECONDS

    @property
    def run(self) -> str:
        return self.weights_path.stem + ("" if self.fit == "crop" else f"_{self.fit}")

    @property
    def run_dir(self) -> Path:
        return self.weights_path.with_name(self.run)

    @property
    def trained_on(self) -> list[dict[str, Any]]:
        return [{"path": str(self.weights_path), "fingerprint": None}]

    @property
    def view(self) -> OpenAvffView:
        return OpenAvffView(self.fit)

    def score(self, clips: Iterable[OpenAvffClip], *, batch_size: int = 8) -> list[WindowScore]:
        """Returns one score per clip, in order; a clip's score does not depend on its batch."""
        clips, scores = iter(clips), []
        while batch := list(islice(clips, batch_size)):
            logits_B = self._fake_logits(batch).double().cpu().tolist()
            scores += [
                WindowScore(clip.key, clip.track, clip.start_seconds, Logits(logit, None, None))
                for clip, logit in zip(batch, logits_B, strict=True)
            ]
        return scores

    @torch.inference_mode()
    def _fake_logits(self, clips: list[OpenAvffClip]) -> Tensor:
        assert not self.model.training, "dropout would make scores random"
        video_BTHWC = torch.from_numpy(np.stack([clip.video_THWC for clip in clips])).to(self.device)
        mean_C, std_C = (torch.tensor(values, device=self.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        video_BTHWC = (video_BTHWC.float() / 255 - mean_C) / std_C
        mel_BMF = torch.stack([clip.mel_MF for clip in clips]).to(self.device)
        return self.model(mel_BMF, video_BTHWC.permute(0, 4, 1, 2, 3).contiguous())[:, FAKE]

    def read_file(self, path: Path, *, num_threads: int = 0) -> Iterator[FilePart]:
        """Yields the file as one part: 16 pictures spread over it, and all of its sound. Threads are of no use to that."""
        spread = read_spread_pictures(path, spread_frames, lambda picture_HWC: fit_frame(picture_HWC, self.fit))
        sound = read_native_sound(path)
        mel_MF = None if sound is None else whole_mel(sound.samples_CN, sound.rate_hz)
        key = single_source(path).source_key
        clips, status = [], ["OK"]
        if sound is None:
            status = ["NO_AUDIO"]
        elif mel_MF is None:
            status = ["TOO_SHORT"]
        else:
            clips = [OpenAvffClip(key, -1, 0.0, np.stack(spread.pictures), mel_MF, sound.samples_CN[0])]
        yield FilePart(
            key=key,
            start_seconds=0.0,
            stop_seconds=spread.duration_seconds,
            frames_per_second=spread.num_frames / spread.duration_seconds,
            status=status,
            tracks=[],
            windows=clips,
            window_seconds=spread.duration_seconds,
        )

    def check_shards(
        self, directories: Sequence[ShardDirectory], samples: Sequence[StoredSample], *, allow_other_build: bool
    ) -> list[str]:
        """Says that a stored clip is not the file that it was cut from."""
        return [
            "Open-AVFF judges whole files; here it judges stored clips, which were cut, scaled and compressed anew and "
            "hold sound at 16 kHz. Its scores of the raw files, by avff predict, will differ.",
            "Open-AVFF chose no threshold, and its licence and its training clips are not stated.",
        ]

    def describe(self) -> dict[str, str]:
        return {
            "model": f"Open-AVFF stage 3, {len(self.model.visual_encoder.blocks)} blocks; each clip as a batch of one, "
            "without dropout",
            "input": f"16 frames of the whole clip, {LOOKS[self.fit]}; its whole sound as 1024 spectrogram frames",
            "licence": "none stated; non-commercial use is all that can be assumed",
        }


def make_open_avff_detector(
    tensors: Mapping[str, Tensor], path: Path, fit: FrameFit, device: torch.device
) -> OpenAvffDetector:
    """Returns the detector of a stage-3 file.

    Args:
        tensors: what `read_published` read from `path`.

    Raises:
        CheckpointError: the keys are not those of stage 3.
    """
    return OpenAvffDetector(
        weights_path=path,
        checkpoint_sha256=sha256_of(path),
        fit=fit,
        device=device,
        model=load_open_avff_classifier(tensors, str(path)).to(device),
    )
