"""How a model looks at a stored sample. A view turns samples into clips and clips into batches.

`AVView` is the view of AVFF: aligned frames and sound. A detector that looks otherwise brings another class with
the same three methods, which is all that `avff.data.stream` asks for (`View`).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from avff.batch import AVBatch, Clip
from avff.config import ClipConfig, DecoderName
from avff.data.decode import decode_frames, decode_sound
from avff.data.decoders import DEFAULT_DECODER, require_decoder
from avff.data.reused_memory import ReusedMemory
from avff.data.samples import Sample
from avff.data.windows import Span, spans, window_labels
from avff.errors import ShardError
from avff.seeding import derive_seed
from avff.windows import crop_square, cut_sound, first_sample, fit_square, frame_indices, sliding_starts


class View(Protocol):
    """What the stream needs of a view; clips and batches are its own types."""

    def train_clips(self, sample: Sample, seeds: Sequence[int]) -> list: ...

    def evaluation_clips(self, sample: Sample) -> list: ...

    def collate(self, clips: Sequence[Any]) -> Any: ...


class AVView:
    """Windows of frames and sound over exactly the same time; squares of `clip.load_size` pixels.

    Args:
        decoder: no effect on the clips.

    Raises:
        ConfigError: the decoder cannot be imported.
    """

    def __init__(self, clip: ClipConfig, decoder: DecoderName = DEFAULT_DECODER):
        require_decoder(decoder)
        self.clip = clip
        self.decoder = decoder
        self._memory = ReusedMemory()

    def train_clips(self, sample: Sample, seeds: Sequence[int]) -> list[Clip]:
        """Cuts one random window per seed, each of one track: the known speaker's, else any that is long enough.

        Args:
            seeds: each decides track and window of its clip, and travels with it for all later choices; a clip does
                not depend on the others, but frames of a track that they share are decoded once.

        Raises:
            ShardError: no track is long enough, or a member cannot be decoded.
        """
        usable = spans(sample.metadata, self.clip)
        if not usable:
            raise ShardError(
                f"sample {sample.metadata.key!r} (status {sample.metadata.status}): no stretch of picture and sound lasts "
                f"the {self.clip.duration_seconds} s of a clip; leave it out or build with another --min-seconds"
            )
        speakers = [span for span in usable if span.track and span.track.is_speaker]
        pool = speakers or usable
        chosen = [derive_seed(seed, "track") % len(pool) for seed in seeds]
        clips: dict[int, Clip] = {}
        for number in sorted(set(chosen)):
            span = pool[number]
            own = [i for i, track in enumerate(chosen) if track == number]
            starts = [span.starts[derive_seed(seeds[i], "window") % len(span.starts)] for i in own]
            clips |= zip(own, self._cut(sample, span, starts, [seeds[i] for i in own]), strict=True)
        return [clips[i] for i in range(len(seeds))]

    def evaluation_clips(self, sample: Sample) -> list[Clip]:
        """Cuts every track into windows at most half a clip apart, from its start to its end.

        Returns:
            The clips by track and time; none where face or sound is missing or too short.
        """
        metadata = sample.metadata
        clips = []
        for span in spans(metadata, self.clip):
            starts = sliding_starts(span.starts, metadata.video.fps, self.clip)
            parts = ("evaluation", metadata.dataset, metadata.key, span.track_id)
            clips += self._cut(sample, span, starts, [derive_seed(*parts, start) for start in starts])
        return clips

    def collate(self, clips: Sequence[Clip]) -> AVBatch:
        """Stacks clips; see `avff.batch.AVBatch`."""
        return AVBatch(
            keys=tuple(clip.key for clip in clips),
            tracks=tuple(clip.track for clip in clips),
            start_seconds_B=torch.tensor([clip.start_seconds for clip in clips], dtype=torch.float64),
            seed_B=torch.tensor([clip.seed for clip in clips], dtype=torch.int64),
            video_BTHWC=torch.from_numpy(self._stack([clip.video_THWC for clip in clips])),
            waveform_BN=torch.from_numpy(np.stack([clip.waveform_N for clip in clips])),
            is_fake_B=torch.tensor([clip.is_fake for clip in clips], dtype=torch.int64),
            video_is_fake_B=torch.tensor([clip.video_is_fake for clip in clips], dtype=torch.int64),
            audio_is_fake_B=torch.tensor([clip.audio_is_fake for clip in clips], dtype=torch.int64),
        )

    def _stack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        shape = len(arrays), *arrays[0].shape
        return np.stack(arrays, out=self._memory.empty(shape, arrays[0].dtype))

    def _cut(self, sample: Sample, span: Span, starts: list[int], seeds: list[int]) -> list[Clip]:
        """Cuts windows of one track; frames that several windows share are decoded once."""
        metadata = sample.metadata
        rate = metadata.video.fps
        where = f"sample {metadata.key!r}"
        indices = np.stack([frame_indices(start, rate, self.clip) for start in starts]) - span.first_frame
        needed = np.unique(indices)
        member = sample.members[span.member]
        stored_TSSC = decode_frames(
            member, needed, span.num_frames, f"{where}: {span.member}", self.decoder, crop_square
        )
        square_THWC = fit_square(stored_TSSC, self.clip.load_size)
        sound_N, offset_samples = self._sound(sample, [start / rate for start in starts], f"{where}: flac")
        clips = []
        for start, seed, indices_T in zip(starts, seeds, indices, strict=True):
            seconds = start / rate
            labels = window_labels(metadata, span.track, seconds, seconds + self.clip.duration_seconds)
            video_THWC = _rows(square_THWC, np.searchsorted(needed, indices_T))
            waveform_N = cut_sound(sound_N, seconds, self.clip, offset_samples)
            clips.append(Clip(metadata.key, span.track_id, seconds, seed, video_THWC, waveform_N, *labels))
        return clips

    def _sound(self, sample: Sample, starts_seconds: list[float], where: str) -> tuple[np.ndarray, int]:
        """Returns the sound that some windows lie in, and the number of its first sample."""
        audio = sample.metadata.audio
        first = first_sample(min(starts_seconds), self.clip)
        stop = min(first_sample(max(starts_seconds), self.clip) + self.clip.num_samples, audio.num_samples)
        content = sample.members["flac"]
        return decode_sound(content, audio.num_samples, audio.sample_rate_hz, where, first, stop), first


def _rows(frames_THWC: np.ndarray, places_T: np.ndarray) -> np.ndarray:
    """Returns some frames, without a copy where they are neighbours."""
    first, last = int(places_T[0]), int(places_T[-1])
    return frames_THWC[first : last + 1] if last - first + 1 == len(places_T) else frames_THWC[places_T]
