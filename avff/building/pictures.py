"""One stored sample as a picture: frames of every member above the spectrogram of its sound."""

import io

import av
import numpy as np
import torch
import torchaudio
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avff.data.shards import Sample

_SHOWN_FRAMES = 8


def draw_sample(sample: Sample) -> bytes:
    """Returns a PNG with evenly spaced frames per video member, the log-mel spectrogram and the labels."""
    videos = sorted(name for name in sample.members if name.endswith(".mp4"))
    figure = Figure(figsize=(14, 2.6 * (len(videos) + 1) + 0.6), layout="constrained")
    figure.suptitle(_title(sample), fontsize=10)
    axes = figure.subplots(len(videos) + 1, 1, squeeze=False)[:, 0]
    for axis, name in zip(axes, videos, strict=False):
        _draw_frames(axis, name, sample)
    _draw_sound(axes[-1], sample)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _title(sample: Sample) -> str:
    metadata = sample.metadata
    names = {0: "real", 1: "fake", None: "unknown"}
    labels = (
        f"{names[metadata.is_fake]} (video {names[metadata.video_is_fake]}, audio {names[metadata.audio_is_fake]}"
        f"{', ' + metadata.category if metadata.category else ''})"
    )
    where = f"{metadata.source_path}, from {metadata.video.start_seconds:.2f} s"
    groups = f"split {metadata.split or '-'}, groups {', '.join(metadata.group_ids) or '-'}"
    return f"{metadata.key}: {labels}, {' '.join(metadata.status)}\n{where}; {groups}; {metadata.encoder.profile}"


def _draw_frames(axis: Axes, name: str, sample: Sample) -> None:
    with av.open(io.BytesIO(sample.members[name]), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = np.unique(np.linspace(0, len(frames) - 1, _SHOWN_FRAMES).astype(int))
    starts = {f"face{track.id}.mp4": track.first_frame for track in sample.metadata.tracks}
    seconds = (chosen + starts.get(name, 0)) / sample.metadata.video.fps
    axis.imshow(np.concatenate([frames[n] for n in chosen], axis=1))
    side = frames[0].shape[1]
    axis.set_xticks([side * (n + 0.5) for n in range(len(chosen))], [f"{s:.2f} s" for s in seconds])
    axis.set_yticks([])
    axis.set_title(f"{name}: {len(frames)} frames, {len(sample.members[name]) / 1e3:.0f} kB", fontsize=9)


def _draw_sound(axis: Axes, sample: Sample) -> None:
    if "flac" not in sample.members:
        axis.text(0.5, 0.5, "no sound", ha="center", va="center")
        axis.set_axis_off()
        return
    with av.open(io.BytesIO(sample.members["flac"]), "r") as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
    to_mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=1024, win_length=400, hop_length=160, n_mels=128)
    mel_FM = torch.log(to_mel(waveform) + 1e-8).numpy()
    seconds = len(samples) / 16000
    axis.imshow(mel_FM, origin="lower", aspect="auto", extent=(0, seconds, 0, 128), cmap="magma", vmin=-18)
    axis.set_xlabel("seconds")
    axis.set_ylabel("mel bin")
    rms_db = 20 * np.log10(max(1e-6, float(waveform.square().mean().sqrt())))
    axis.set_title(f"flac: {seconds:.2f} s, {len(sample.members['flac']) / 1e3:.0f} kB, {rms_db:.0f} dB", fontsize=9)
