"""The usual way to load clips: from the source file, with resizing, floats and spectrogram on the CPU.

What loaders like Open-AVFF's do for one clip (its README and data format, not its code): 16 pictures fetched one by one
with decord, each resized by PIL and normalised as float32; the sound decoded, its mean subtracted, a Kaldi filter bank of
128 bins, stretched to the model's number of spectrogram frames. A torch DataLoader stacks them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import decord
import numpy as np
import torch
import torchaudio
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from avff.config import IMAGENET_MEAN, IMAGENET_STD, ClipConfig
from avff.data.samples import Sample


class Stretch(NamedTuple):
    """A part of a source file.

    Attributes:
        stop_seconds: infinite for the whole file.
    """

    path: Path
    start_seconds: float
    stop_seconds: float


def stretches(samples: Sequence[Sample], root: Path) -> list[Stretch]:
    """Returns where in the files below `root` the samples come from."""
    return [
        Stretch(root / s.metadata.source_path, start, start + s.metadata.video.duration_seconds)
        for s in samples
        for start in [s.metadata.video.start_seconds]
    ]


def whole_files(samples: Sequence[Sample], root: Path) -> list[Stretch]:
    """Returns the files below `root` that the samples come from, each once."""
    return [Stretch(root / name, 0.0, float("inf")) for name in sorted({s.metadata.source_path for s in samples})]


class UsualClips(Dataset):
    """Clips of source files: a window of `clip.duration_seconds` of a stretch, or pictures spread over a whole file.

    Args:
        num_clips: length; the stretches come in turn.
    """

    def __init__(self, found: Sequence[Stretch], clip: ClipConfig, num_clips: int):
        self.found = found
        self.clip = clip
        self.num_clips = num_clips

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns video_CTHW and mel_MF, float32, normalised."""
        part = self.found[index % len(self.found)]
        reader = decord.VideoReader(str(part.path), num_threads=1)
        if part.stop_seconds == float("inf"):
            indices = np.linspace(0, len(reader) - 1, self.clip.num_frames)
        else:
            latest = max(part.start_seconds, part.stop_seconds - self.clip.duration_seconds)
            start = float(np.random.default_rng(index).uniform(part.start_seconds, latest))
            part = Stretch(part.path, start, start + self.clip.duration_seconds)
            seconds = start + np.arange(self.clip.num_frames) / self.clip.frames_per_second
            indices = np.minimum(np.rint(seconds * reader.get_avg_fps()), len(reader) - 1)
        frames = [self._picture(reader[int(i)].asnumpy()) for i in indices]
        return torch.stack(frames, dim=1), self._mel(*_sound(part))

    def _picture(self, frame_HWC: np.ndarray) -> Tensor:
        size = (self.clip.image_size, self.clip.image_size)
        pixels = torch.from_numpy(np.array(Image.fromarray(frame_HWC).resize(size))).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]

    def _mel(self, sound_N: np.ndarray, sample_rate_hz: int) -> Tensor:
        waveform = torch.from_numpy(sound_N)[None]
        mel_MF = torchaudio.compliance.kaldi.fbank(
            waveform - waveform.mean(),
            htk_compat=True,
            sample_frequency=sample_rate_hz,
            window_type="hanning",
            num_mel_bins=self.clip.num_mel_bins,
            dither=0.0,
        )
        stretched = F.interpolate(mel_MF.T[None], size=self.clip.num_mel_frames, mode="linear")[0].T
        return (stretched - self.clip.mel_mean) / self.clip.mel_std


def _sound(part: Stretch) -> tuple[np.ndarray, int]:
    """Decodes the first channel of a stretch at its own rate."""
    chunks = []
    with av.open(str(part.path)) as container:
        stream = container.streams.audio[0]
        if part.start_seconds > 0:
            container.seek(int(part.start_seconds * av.time_base))
        resampler = av.AudioResampler(format="fltp")
        for frame in container.decode(stream):
            if frame.time is not None and frame.time > part.stop_seconds:
                break
            chunks += [converted.to_ndarray()[0] for converted in resampler.resample(frame)]
        return np.concatenate(chunks), stream.rate


def usual_batches(
    found: Sequence[Stretch], clip: ClipConfig, *, num_clips: int, batch_size: int, num_workers: int
) -> Iterator[Any]:
    """Yields batches of (video_BCTHW, mel_BMF)."""
    yield from DataLoader(UsualClips(found, clip, num_clips), batch_size=batch_size, num_workers=num_workers)
