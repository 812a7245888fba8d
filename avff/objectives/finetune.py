"""Stage 3: three binary cross-entropies, each over the clips whose label is known."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avff.batch import UNKNOWN, ModelInputs
from avff.config import Config
from avff.models.build import build_classifier
from avff.models.classifier import Logits, blanked_modalities
from avff.objectives.losses import StepLosses


class FinetuneObjective:
    """Owns the classifier and turns inputs with labels into losses.

    Attributes:
        model: to be wrapped by an engine; `model(video, mel, seed)` gives `Logits`.
        critics: always None.
    """

    def __init__(self, config: Config):
        self.settings = config.finetune
        self.model: nn.Module = build_classifier(config)
        self.critics: nn.Module | None = None

    def model_losses(
        self, model: nn.Module, critics: nn.Module | None, inputs: ModelInputs, cached: None = None
    ) -> StepLosses:
        """Runs the model once and returns its losses; `critics` and `cached` are for pretraining."""
        logits: Logits = model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
        heads = self.clip_losses(logits, self._label_what_is_left(inputs))
        weights = {
            "overall": self.settings.overall_weight,
            "video": self.settings.video_weight,
            "audio": self.settings.audio_weight,
        }
        means = {name: loss_B.mean() for name, loss_B in heads.items()}
        total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
        terms = {"loss": total.detach(), **{f"{name}_loss": mean.detach() for name, mean in means.items()}}
        return StepLosses(total, terms)

    def _label_what_is_left(self, inputs: ModelInputs) -> ModelInputs:
        """Where modality dropout blanked one modality, the overall label is the other's: real sound of a clip whose
        picture is forged says nothing about the picture."""
        if self.settings.modality_dropout == 0:
            return inputs
        no_video_B, no_audio_B = blanked_modalities(inputs.seed_B, self.settings.modality_dropout)
        is_fake_B = torch.where(no_video_B, inputs.audio_is_fake_B, inputs.is_fake_B)
        return inputs._replace(is_fake_B=torch.where(no_audio_B, inputs.video_is_fake_B, is_fake_B))

    def clip_losses(self, logits: Logits, inputs: ModelInputs) -> dict[str, Tensor]:
        """Returns each head's loss per clip, (B,) float32, 0 where the label is unknown."""
        smoothing = self.settings.label_smoothing
        return {
            "overall": binary_loss_per_clip(logits.overall_B, inputs.is_fake_B, smoothing),
            "video": binary_loss_per_clip(logits.video_B, inputs.video_is_fake_B, smoothing),
            "audio": binary_loss_per_clip(logits.audio_B, inputs.audio_is_fake_B, smoothing),
        }


def binary_loss_per_clip(logit_B: Tensor, is_fake_B: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy per clip; clips of unknown label count with 0, unless their logit is not finite.

    Averaging over all clips, unknown ones included, keeps a clip's weight independent of its batch: the mean over
    micro steps and ranks is then the loss of the global batch, without communication. Dividing by the number of
    known labels would tie it to how the batch is spread.

    Args:
        is_fake_B: 0 real, 1 fake, UNKNOWN.
        label_smoothing: share of the target moved to 0.5.
    """
    known_B = is_fake_B != UNKNOWN
    target_B = is_fake_B.clamp_min(0).float() * (1 - label_smoothing) + 0.5 * label_smoothing
    loss_B = F.binary_cross_entropy_with_logits(logit_B.float(), target_B, reduction="none")
    # Multiplied, not filled in: a logit that is not finite shows, whatever is known about its clip.
    return loss_B * known_B
