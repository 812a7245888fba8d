"""A finetuned checkpoint of ours that scores clips."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from avff.batch import AVBatch, Clip
from avff.build_config import BuildConfig
from avff.building.samples import cut_samples
from avff.building.sources import single_source
from avff.checkpoints import Checkpoint, config_differences, load_classifier, read_checkpoint
from avff.config import Config
from avff.data.selection import StoredSample
from avff.data.shards import ShardDirectory
from avff.data.trained_on import inherited_records
from avff.data.views import AVView
from avff.data.windows import check_rate
from avff.errors import CheckpointError
from avff.evaluation.aggregate import Logits, WindowScore
from avff.files import sha256_of
from avff.inference.detector import FilePart
from avff.inference.provenance import check_build, describe_build
from avff.models.classifier import Classifier
from avff.preprocess import Preprocess
from avff.run_folder import CheckpointRef, resolve_checkpoint
from avff.strict_yaml import from_dict


@dataclass(frozen=True, kw_only=True)
class AvffDetector:
    """A classifier in evaluation mode; see `Detector`.

    Attributes:
        run_dir: the run's folder; for a bare weight file, the folder that holds it.
        build: how the training clips were made; None where the checkpoint does not say.
    """

    name: str
    run: str
    run_dir: Path
    weights_path: Path
    checkpoint_sha256: str
    step: int
    config: Config
    build: BuildConfig | None
    trained_on: list[dict[str, Any]]
    threshold: float | None
    device: torch.device
    view: AVView
    model: Classifier
    preprocess: Preprocess

    @property
    def decode_timeout_seconds(self) -> float:
        return self.config.faults.decode_timeout_seconds

    def score(self, clips: Iterable[Clip], *, batch_size: int = 8) -> list[WindowScore]:
        """Returns one score per window, in order; a window's score does not depend on its batch."""
        clips, scores = iter(clips), []
        while batch := list(islice(clips, batch_size)):
            scores += self._score_batch(batch)
        return scores

    @torch.inference_mode()
    def _score_batch(self, clips: list[Clip]) -> list[WindowScore]:
        assert not self.model.training, "dropout would make scores random"
        batch = self.view.collate(clips)
        on_device: Iterable[Any] = (value.to(self.device) if torch.is_tensor(value) else value for value in batch)
        inputs = self.preprocess(AVBatch(*on_device), training=False)
        heads = self.model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
        logits_BH = torch.stack([heads.overall_B, heads.video_B, heads.audio_B], dim=1).double().cpu().tolist()
        pairs = zip(clips, logits_BH, strict=True)
        return [WindowScore(clip.key, clip.track, clip.start_seconds, Logits(*logits)) for clip, logits in pairs]

    def read_file(self, path: Path, *, num_threads: int = 0) -> Iterator[FilePart]:
        """Cuts a file as the training clips were cut."""
        for sample in cut_samples(single_source(path), self.require_build(), num_threads=num_threads):
            metadata = sample.metadata
            start_seconds = metadata.video.start_seconds
            yield FilePart(
                key=metadata.key,
                start_seconds=start_seconds,
                stop_seconds=start_seconds + metadata.video.duration_seconds,
                frames_per_second=metadata.video.fps,
                status=list(metadata.status),
                tracks=metadata.tracks,
                windows=self.view.evaluation_clips(sample),
                window_seconds=self.config.clip.duration_seconds,
            )

    def require_build(self) -> BuildConfig:
        """Returns how to make clips from a raw file.

        Raises:
            CheckpointError: the checkpoint does not record it, or it needs the user's own boxes.
        """
        if self.build is None:
            raise CheckpointError(
                f"{self.weights_path}: does not record how its clips were made (`build`), so a raw file cannot be cut "
                "the same way; use a run folder that `avff train` wrote, or evaluate shards"
            )
        if self.build.mode == "boxes":
            raise CheckpointError(
                f"{self.weights_path}: its clips were cut with the user's own boxes (mode boxes), which a single file "
                "does not bring; build shards with tools/make_shards.py --boxes and run avff evaluate on them"
            )
        return self.build

    def check_shards(
        self, directories: Sequence[ShardDirectory], samples: Sequence[StoredSample], *, allow_other_build: bool
    ) -> list[str]:
        """Compares how the clips were made, and refuses to invent frames between stored ones."""
        notes = []
        for directory in directories:
            notes += check_build(self.build, self.weights_path, directory, allow=allow_other_build)
        for directory, row in samples:
            check_rate(row.frames_per_second, self.config.clip, f"{directory.path}: sample {row.key!r}")
        return notes

    def describe(self) -> dict[str, str]:
        clip = self.config.clip
        return {
            "run": f"{self.config.name}, step {self.step}",
            "model": f"{self.config.model.size}, {clip.num_frames} frames at {clip.frames_per_second} per second, "
            f"{clip.image_size} px",
            "clips made as": describe_build(self.build),
        }


def load_avff_detector(checkpoint: str, device: torch.device, config: Config | None = None) -> AvffDetector:
    """Loads `RUN[:best|last|step-N][:raw]`, a model folder or a `.safetensors` file with its sidecar; LoRA is merged.

    Args:
        config: an experiment that the checkpoint has to fit; its model and clip sections are compared.

    Raises:
        CheckpointError: no such checkpoint, of another stage or model, or weights that do not fit it.
    """
    read = read_checkpoint(resolve_checkpoint(checkpoint))
    model = load_classifier(read)
    if config is not None:
        _check_same(read, config)
    return make_detector(replace(read.reference, config=read.config), model.to(device), device)


def make_detector(reference: CheckpointRef, model: Classifier, device: torch.device) -> AvffDetector:
    """Wraps a classifier whose weights are in place already."""
    build = reference.state.get("build")
    return AvffDetector(
        name="avff",
        run=reference.config.name,
        run_dir=reference.run_dir,
        weights_path=reference.weights_path,
        checkpoint_sha256=sha256_of(reference.weights_path),
        step=reference.step,
        config=reference.config,
        build=from_dict(BuildConfig, build, where=f"{reference.weights_path}: build") if build else None,
        trained_on=inherited_records(reference.state, reference.weights_path),
        threshold=reference.threshold,
        device=device,
        view=AVView(reference.config.clip),
        model=model.eval(),
        preprocess=Preprocess(reference.config.clip, reference.config.data.augment),
    )


def _check_same(checkpoint: Checkpoint, config: Config) -> None:
    """Raises CheckpointError with every setting in which the checkpoint is not the experiment's."""
    differences = config_differences(checkpoint.config, config)
    problems = [f"{key} is {theirs!r} in the checkpoint, {ours!r} in the config" for key, theirs, ours in differences]
    if problems:
        raise CheckpointError(f"{checkpoint.reference.weights_path}: " + "\n  ".join(problems))
