"""A finetuned checkpoint that scores clips."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from avff.batch import AVBatch, Clip
from avff.build_config import BuildConfig
from avff.config import Config
from avff.data.trained_on import inherited_records
from avff.data.views import AVView
from avff.errors import CheckpointError, ConfigError
from avff.evaluation.aggregate import Logits, WindowScore
from avff.files import sha256_of
from avff.models.build import build_classifier
from avff.models.classifier import Classifier
from avff.models.weights import NOT_IN_WEIGHTS, load_into, load_weights
from avff.preprocess import Preprocess
from avff.run_folder import CheckpointRef, resolve_checkpoint
from avff.strict_yaml import flatten, from_dict


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A classifier in evaluation mode and all that a score needs besides.

    Attributes:
        run: name of the run.
        run_dir: its folder; for a bare weight file, the folder that holds it.
        weights_path: the file that was loaded.
        build: how the training clips were made; None where the checkpoint does not say.
        trained_on: records of the shard directories of its training and of all stages before (avff.data.trained_on).
        threshold: on the fake probability, chosen on validation; None where the checkpoint holds none for these
            weights.
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

    def require_build(self) -> BuildConfig:
        """Returns how to make clips from a raw file.

        Raises:
            CheckpointError: the checkpoint does not record it.
        """
        if self.build is None:
            raise CheckpointError(
                f"{self.weights_path}: does not record how its clips were made (`build`), so a raw file cannot be cut "
                "the same way; use a run folder that `avff train` wrote, or evaluate shards"
            )
        return self.build


def load_detector(checkpoint: str, *, config: Config | None = None, device: str = "auto") -> Detector:
    """Loads `RUN[:best|last|step-N][:raw]` or a `.safetensors` file for scoring.

    Args:
        config: an experiment that the checkpoint has to fit; its model and clip sections are compared.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.

    Raises:
        CheckpointError: no such checkpoint, of another stage or model, or weights that do not fit it.
        ConfigError: `cuda` was asked for and is not there.
    """
    reference = resolve_checkpoint(checkpoint)
    _check_stage(checkpoint, reference, config)
    chosen = choose_device(device)
    return make_detector(reference, _load_model(reference).to(chosen), chosen)


def make_detector(reference: CheckpointRef, model: Classifier, device: torch.device) -> Detector:
    """Wraps a classifier whose weights are in place already."""
    build = reference.state.get("build")
    return Detector(
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


def choose_device(device: str) -> torch.device:
    """Returns the device that `auto`, `cpu` or `cuda` means here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but torch sees no GPU; use --device cpu or auto")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown; use --device auto, cpu, cuda or cuda:N") from error


def _check_stage(checkpoint: str, reference: CheckpointRef, config: Config | None) -> None:
    """Reports everything that keeps this checkpoint from scoring, at once."""
    problems = []
    if reference.config.stage != "finetune":
        problems.append(
            f"it is of stage {reference.config.stage!r}, which has no real/fake heads; finetune it first: "
            "tools/adapt_weights.py, then avff train with stage: finetune"
        )
    if config is not None:
        problems += [
            f"{key} is {theirs!r} in the checkpoint, {ours!r} in the config"
            for key, theirs, ours in _differences(reference.config, config)
        ]
    if problems:
        raise CheckpointError(f"{checkpoint}: " + "\n  ".join(problems))


def _differences(theirs: Config, ours: Config) -> list[tuple[str, Any, Any]]:
    """Returns (key, theirs, ours) of the fields that change the model or its input."""
    before, after = flatten(theirs), flatten(ours)
    keys = ["stage", *(key for key in before if key.startswith(("clip.", "model.")) and key not in NOT_IN_WEIGHTS)]
    return [(key, before[key], after[key]) for key in keys if before[key] != after[key]]


def _load_model(reference: CheckpointRef) -> Classifier:
    tensors, _ = load_weights(reference.weights_path)
    model = build_classifier(reference.config)
    load_into(model, tensors, str(reference.weights_path))
    return model
