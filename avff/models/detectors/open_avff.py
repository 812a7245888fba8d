"""Open-AVFF's networks to the letter: pretraining (its stages 1 and 2) and the classifier (its stage 3).

For users who come with its weights and want to keep their scores. Its encoders convert losslessly
into ours (`avff.models.importers.open_avff`); everything between and above them does not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avff.models.detectors.open_avff_parts import (
    AUDIO_TOKENS,
    NUM_SLICES,
    VIDEO_TOKENS,
    AudioDecoder,
    AudioEncoder,
    CrossModal,
    OpenAvffSize,
    VideoDecoder,
    VideoEncoder,
)
from avff.models.patches import join_slices, split_slices

NUM_VISIBLE_SLICES = NUM_SLICES // 2
TEMPERATURE = 0.05
FAKE, REAL = 0, 1
"""Columns of the classifier's logits."""
_ROW_EPS = 1e-6
_HEAD_WIDTH = 1024
_DROPOUT = 0.5


class OpenAvffPretrainOutput(NamedTuple):
    """
    Attributes:
        audio_tokens_BLD: (B, 512, D), frequency first.
        video_tokens_BLD: (B, 1568, D).
        mel_B1FM, video_BCTHW: reconstructions, every patch of them, of targets normalised row by row.
    """

    audio_tokens_BLD: Tensor
    video_tokens_BLD: Tensor
    mel_B1FM: Tensor
    video_BCTHW: Tensor


class OpenAvffLosses(NamedTuple):
    """Scalars; `contrastive_accuracy` is the share of clips whose other half is found, in both directions."""

    total: Tensor
    contrastive: Tensor
    contrastive_accuracy: Tensor
    audio_reconstruction: Tensor
    video_reconstruction: Tensor


class OpenAvffPretrain(nn.Module):
    """Stages 1 and 2: two encoders, A2V and V2A between complementary halves of the slices, two decoders.

    Args:
        attend_over_batch: see `PostNormBlock`; False gives every clip what it gives alone.
    """

    def __init__(self, size: OpenAvffSize | None = None, *, attend_over_batch: bool = False):
        super().__init__()
        size = size or OpenAvffSize()
        audio, video = AUDIO_TOKENS // 2, VIDEO_TOKENS // 2
        self.audio_encoder = AudioEncoder(size.encoder_depth)
        self.audio_decoder = AudioDecoder(size)
        self.visual_encoder = VideoEncoder(size.encoder_depth)
        self.visual_decoder = VideoDecoder(size)
        self.a2v = CrossModal(audio, video, attend_over_batch)
        self.v2a = CrossModal(video, audio, attend_over_batch)

    def forward(self, mel_BMF: Tensor, video_BCTHW: Tensor, visible_video: Sequence[int]) -> OpenAvffPretrainOutput:
        """
        Args:
            mel_BMF: (B, 1024, 128).
            video_BCTHW: (B, 3, 16, 224, 224), ImageNet-normalised.
            visible_video: the four slices, of all clips alike, that show the picture; the others show the sound.
                Open-AVFF draws them anew for every batch.
        """
        seen = sorted(visible_video)
        heard = [index for index in range(NUM_SLICES) if index not in seen]
        assert len(seen) == len(heard) == NUM_VISIBLE_SLICES, f"four different slices of {NUM_SLICES}, not {seen}"
        audio_BLD, video_BLD = self.audio_encoder(mel_BMF), self.visual_encoder(video_BCTHW)
        audio_BSLD, video_BSLD = split_slices(audio_BLD, NUM_SLICES), split_slices(video_BLD, NUM_SLICES)
        fused_audio, fused_video = audio_BSLD.clone(), video_BSLD.clone()
        fused_video[:, heard] = self.a2v(audio_BSLD[:, heard])
        fused_audio[:, seen] = self.v2a(video_BSLD[:, seen])
        return OpenAvffPretrainOutput(
            audio_tokens_BLD=audio_BLD,
            video_tokens_BLD=video_BLD,
            mel_B1FM=self.audio_decoder(join_slices(fused_audio)),
            video_BCTHW=self.visual_decoder(join_slices(fused_video)),
        )


def open_avff_losses(
    output: OpenAvffPretrainOutput, mel_BMF: Tensor, video_BCTHW: Tensor, *, contrastive_weight: float
) -> OpenAvffLosses:
    """Returns its losses: every patch is reconstructed, the visible ones too, and whole clips are contrasted."""
    audio = _row_loss(output.mel_B1FM, mel_BMF.transpose(1, 2)[:, None])
    video = _row_loss(output.video_BCTHW, video_BCTHW)
    contrastive, accuracy = _contrast(output.audio_tokens_BLD.mean(dim=1), output.video_tokens_BLD.mean(dim=1))
    return OpenAvffLosses(video + audio + contrastive_weight * contrastive, contrastive, accuracy, audio, video)


def _row_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error to a target of zero mean and unit variance along its last axis: a row of 224 pixels, or the
    whole time of one mel bin."""
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    return F.mse_loss(predicted, (target - mean) / torch.sqrt(variance + _ROW_EPS))


def _contrast(audio_BD: Tensor, video_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the symmetric InfoNCE of a batch and its accuracy."""
    similarity_BB = F.normalize(audio_BD, dim=-1) @ F.normalize(video_BD, dim=-1).T / TEMPERATURE
    own_B = torch.arange(len(similarity_BB), device=similarity_BB.device)
    both = (similarity_BB, similarity_BB.T)
    loss = torch.stack([F.cross_entropy(one, own_B) for one in both]).mean()
    accuracy = torch.stack([(one.argmax(dim=1) == own_B).float().mean() for one in both]).mean()
    return loss, accuracy


# ------------------------------------------------------------------------------------------- classifier


class OpenAvffClassifier(nn.Module):
    """Stage 3: both encoders, A2V and V2A over all slices, and a head on the mean over *channels* of each token.

    Args:
        attend_over_batch: see `PostNormBlock`; False gives every clip the logits that it gives alone.
    """

    def __init__(self, size: OpenAvffSize | None = None, *, attend_over_batch: bool = False):
        super().__init__()
        depth = (size or OpenAvffSize()).encoder_depth
        self.audio_encoder = AudioEncoder(depth)
        self.visual_encoder = VideoEncoder(depth)
        self.a2v = CrossModal(AUDIO_TOKENS, VIDEO_TOKENS, attend_over_batch)
        self.v2a = CrossModal(VIDEO_TOKENS, AUDIO_TOKENS, attend_over_batch)
        self.mlp_vision = nn.Linear(VIDEO_TOKENS, _HEAD_WIDTH)
        self.mlp_audio = nn.Linear(AUDIO_TOKENS, _HEAD_WIDTH)
        self.mlp_head = OpenAvffHead()

    def forward(self, mel_BMF: Tensor, video_BCTHW: Tensor) -> Tensor:
        """
        Args:
            mel_BMF: (B, 1024, 128).
            video_BCTHW: (B, 3, 16, 224, 224), ImageNet-normalised.

        Returns:
            (B, 2) logits, columns FAKE and REAL; the two are not complements.
        """
        audio_BSLD = split_slices(self.audio_encoder(mel_BMF), NUM_SLICES)
        video_BSLD = split_slices(self.visual_encoder(video_BCTHW), NUM_SLICES)
        video_BL = _channel_mean(self.a2v(audio_BSLD), video_BSLD)
        audio_BL = _channel_mean(self.v2a(video_BSLD), audio_BSLD)
        return self.mlp_head(torch.cat([self.mlp_vision(video_BL), self.mlp_audio(audio_BL)], dim=-1))


def _channel_mean(predicted_BSLD: Tensor, own_BSLD: Tensor) -> Tensor:
    return join_slices(torch.cat([predicted_BSLD, own_BSLD], dim=-1)).mean(dim=-1)


class OpenAvffHead(nn.Module):
    """Three linear layers; dropout comes before ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * _HEAD_WIDTH, _HEAD_WIDTH)
        self.fc2 = nn.Linear(_HEAD_WIDTH, _HEAD_WIDTH)
        self.fc3 = nn.Linear(_HEAD_WIDTH, 2)

    def forward(self, x_BD: Tensor) -> Tensor:
        x_BD = F.relu(F.dropout(self.fc1(x_BD), _DROPOUT, self.training))
        x_BD = F.relu(F.dropout(self.fc2(x_BD), _DROPOUT, self.training))
        return self.fc3(x_BD)
