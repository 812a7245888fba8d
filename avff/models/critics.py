"""Wasserstein critics that tell predicted patches from true ones, one per modality (docs/method.md)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2


class CriticOutput(NamedTuple):
    """Scores of patches, higher for what looks true, and how steeply they change.

    Attributes:
        score_BK: float32.
        slope_BK: float32 length of the score's gradient with respect to the patch.
    """

    score_BK: Tensor
    slope_BK: Tensor


class PatchCritic(nn.Module):
    """Two-layer perceptron on single patches, with its input gradient in closed form.

    A WGAN gradient penalty usually differentiates twice. For two layers the gradient is `W1^T (w2 * act'(h))`, an
    ordinary expression of the weights: it needs no double backward, which ZeRO-3's released weights do not survive.

    Source:
        MARLIN, CVPR 2023, section 3.2 (patch_values-1536-1), without the score's bias.
    """

    def __init__(self, patch_values: int, width: int):
        super().__init__()
        # Plain parameters, since the slope needs the weights themselves: ZeRO-3 gathers a module's own parameters
        # for its whole forward pass, but those of a submodule only while that submodule runs.
        self.hidden_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, patch_values)))
        self.hidden_bias = nn.Parameter(torch.zeros(width))
        self.score_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, width)))

    def forward(self, patches_BKP: Tensor, num_slopes: int) -> CriticOutput:
        """
        Args:
            patches_BKP: normalised patches.
            num_slopes: leading clips whose slope is wanted.
        """
        hidden_BKD = F.linear(patches_BKP.to(self.hidden_weight.dtype), self.hidden_weight, self.hidden_bias)
        # No bias: a constant cancels between true and predicted patches. Its gradient would be nothing but rounding, which
        # Adam turns into steps of full size, and the model's loss would drift by them.
        score_BK = F.linear(F.leaky_relu(hidden_BKD, LEAK), self.score_weight).squeeze(-1).float()
        derivative_BKD = torch.where(hidden_BKD[:num_slopes] > 0, 1.0, LEAK).to(hidden_BKD.dtype)
        gradient_BKP = (derivative_BKD * self.score_weight.squeeze(0)) @ self.hidden_weight
        return CriticOutput(score_BK, gradient_BKP.float().norm(dim=-1))


class Critics(nn.Module):
    """Both critics in one module, trained by an engine of their own."""

    def __init__(self, video_patch_values: int, audio_patch_values: int, width: int):
        super().__init__()
        self.video = PatchCritic(video_patch_values, width)
        self.audio = PatchCritic(audio_patch_values, width)

    def forward(self, video_BKP: Tensor, audio_BKP: Tensor, num_slopes: int = 0) -> tuple[CriticOutput, CriticOutput]:
        """Returns video's and audio's scores of all clips, and slopes of the first `num_slopes` clips."""
        return self.video(video_BKP, num_slopes), self.audio(audio_BKP, num_slopes)
