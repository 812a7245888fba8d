"""Validation on held-out clips with the averaged weights, shared among the ranks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from avff import distributed
from avff.batch import AVBatch, ModelInputs
from avff.config import Config
from avff.data.selection import StoredSample
from avff.engine.fragments import WEIGHTS
from avff.engine.prefetch import move
from avff.engine.trainable import Trainable
from avff.errors import EvaluationError
from avff.evaluation import metrics
from avff.evaluation.aggregate import Logits, WindowScore, aggregate, probability
from avff.objectives import PretrainObjective, Reconstruction, build_objective
from avff.preprocess import Preprocess

HEADS = {"": "is_fake", "video_": "video_is_fake", "audio_": "audio_is_fake"}
"""Prefix of each head's metrics and the label it answers to."""


class Validation(NamedTuple):
    """Result of one validation; `best` compares `value`.

    Attributes:
        metric: name of the number that `best` looks at.
        value: None when it is undefined, such as an AUC without fakes.
        higher_is_better: direction.
        threshold: fake probability with the best balanced accuracy; None in pretraining.
        numbers: everything measured, for the metrics log.
    """

    metric: str
    value: float | None
    higher_is_better: bool
    threshold: float | None
    numbers: dict[str, float | None]

    def as_state(self) -> dict[str, Any] | None:
        """What a checkpoint records; None when there is nothing to compare, which NaN is too: it would stay the best."""
        return None if self.value is None or not math.isfinite(self.value) else self._asdict()


class Validator:
    """Holds a plain copy of the model, so that ZeRO's sharded weights and hooks stay out of evaluation."""

    def __init__(self, config: Config, preprocess: Preprocess, device: torch.device):
        self.config = config
        self.objective = build_objective(config)
        self.network = self.objective.model.to(device).eval()
        self.preprocess = preprocess
        self.device = device

    @torch.no_grad()
    def load(self, model: Trainable) -> None:
        """Copies the averaged weights (the raw ones where no average is kept) into the copy; a collective."""
        own = dict(self.network.named_parameters())
        for name, tensor in model.gather("ema" if self.config.optim.ema_decay else WEIGHTS):
            own[name].copy_(tensor)
        state = self.network.state_dict()
        for name, tensor in model.persistent_buffers().items():
            state[name].copy_(tensor)

    @torch.no_grad()
    def run(self, batches: Iterable[AVBatch], samples: Sequence[StoredSample]) -> Validation:
        """Scores this rank's share of the validation clips and joins all shares; a collective.

        Args:
            samples: the clips over all ranks.

        Raises:
            EvaluationError: clips were lost or came twice.
        """
        score = self._score_pretrain if self.config.stage == "pretrain" else self._score_finetune
        return score(batches, samples)

    @torch.no_grad()
    def reconstruct(self, batch: AVBatch) -> Reconstruction:
        """Returns pictures of the batch's first clips, for a panel; pretraining only."""
        assert isinstance(self.objective, PretrainObjective)
        inputs = self._inputs(batch)
        with self.autocast():
            return self.objective.reconstruct(self.network, inputs)

    def autocast(self) -> torch.autocast:
        """The precision of training."""
        enabled = self.config.engine.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _inputs(self, batch: AVBatch) -> ModelInputs:
        """Called outside of autocast, for the inputs are fp32 in training too."""
        return self.preprocess(move(batch, self.device), training=False)

    def _score_pretrain(self, batches: Iterable[AVBatch], samples: Sequence[StoredSample]) -> Validation:
        per_key: dict[str, list[dict[str, float]]] = {}
        assert isinstance(self.objective, PretrainObjective)
        for batch in batches:
            inputs = self._inputs(batch)
            with self.autocast():
                losses = self.objective.clip_losses(self.network, inputs)
            rows = zip(*(values_B.tolist() for values_B in losses.values()), strict=True)
            for key, row in zip(batch.keys, rows, strict=True):
                per_key.setdefault(key, []).append(dict(zip(losses, row, strict=True)))
        clips = _join(per_key, len(samples))
        names = next(iter(clips.values()))[0].keys()
        means = {n: float(np.mean([np.mean([w[n] for w in clips[key]]) for key in sorted(clips)])) for n in names}
        return Validation(
            metric="reconstruction",
            value=means["reconstruction"],
            higher_is_better=False,
            threshold=None,
            numbers={f"validation/{name}": mean for name, mean in means.items()},
        )

    def _score_finetune(self, batches: Iterable[AVBatch], samples: Sequence[StoredSample]) -> Validation:
        windows: dict[str, list[WindowScore]] = {}
        for batch in batches:
            inputs = self._inputs(batch)
            with self.autocast():
                heads = self.network(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
            logits_B3 = torch.stack(list(heads), dim=1).double().tolist()
            places = zip(batch.keys, batch.tracks, batch.start_seconds_B.tolist(), strict=True)
            for (key, track, start), row in zip(places, logits_B3, strict=True):
                windows.setdefault(key, []).append(WindowScore(key, track, start, Logits(*row)))
        scores = aggregate(window for clip in _join(windows, len(samples)).values() for window in clip)
        # The clips' own labels, as in evaluation; those of a window say whether this stretch of the clip is forged.
        truths = {s.row.key: tuple(getattr(s.row, name) for name in HEADS.values()) for s in samples}
        return _measure({key: score.logits for key, score in scores.items()}, truths)


def _join(per_key: dict[str, Any], num_expected: int) -> dict[str, Any]:
    """Returns all ranks' clips by key, the same on every rank."""
    shares = distributed.gather_objects(per_key)
    joined = {key: value for share in shares for key, value in share.items()}
    num_scored = sum(len(share) for share in shares)
    if len(joined) != num_expected or num_scored != num_expected:
        raise EvaluationError(
            f"validation scored {num_scored} clips ({len(joined)} different), {num_expected} were expected; "
            "no number is reported"
        )
    return joined


def _measure(logits: dict[str, Logits], truths: dict[str, tuple[int | None, ...]]) -> Validation:
    numbers: dict[str, float | None] = {}
    threshold: float | None = None
    for head, prefix in enumerate(HEADS):
        known = [key for key in sorted(logits) if truths[key][head] is not None]
        labels_N = np.array([truths[key][head] for key in known], dtype=np.int64)
        scores_N = np.array([logits[key][head] for key in known])
        defined = metrics.undefined_reason(labels_N) is None
        numbers[f"validation/{prefix}auc"] = metrics.roc_auc(scores_N, labels_N) if defined else None
        if head == 0 and defined:
            probabilities_N = np.array([probability(score) for score in scores_N])
            threshold = metrics.best_threshold(probabilities_N, labels_N)
            numbers["validation/balanced_accuracy"] = metrics.balanced_accuracy(probabilities_N, labels_N, threshold)
    numbers["validation/threshold"] = threshold
    return Validation("auc", numbers["validation/auc"], True, threshold, numbers)
