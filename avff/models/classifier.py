"""Stage 3: the pretrained encoders and cross-modal networks under three real/fake heads."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avff import seeding
from avff.config import ClipConfig, ContrastiveLevel, FinetuneConfig, ModelConfig, PretrainConfig
from avff.models.contrast import Temperature, contrast_embeddings
from avff.models.cross_modal import CrossModal
from avff.models.encoder import Encoder
from avff.models.patches import audio_grid, join_slices, patchify_audio, patchify_video, video_grid

NUM_AGREEMENTS = 3
"""Kinds of sound-picture agreement per slice: contrast, A2V against video, V2A against audio."""


class Logits(NamedTuple):
    """Log-odds that a clip is fake, float32: as a whole, its picture, its sound."""

    overall_B: Tensor
    video_B: Tensor
    audio_B: Tensor


class AttentivePool(nn.Module):
    """Own and predicted tokens of one modality to one vector, by attention with learned queries.

    Each token sees its own feature beside what the other modality predicts for the same place, so that the first
    layer can compare the two. One learned query per head then weighs the tokens. Key and value projections would
    fold into the layers before and after (one query, no bias), so there are none; all channels are kept.
    """

    def __init__(self, model: ModelConfig):
        super().__init__()
        width, self.heads = model.decoder.width, model.decoder.heads
        self.compare = nn.Linear(2 * model.encoder.width, width)
        self.query = nn.Linear(width, self.heads)
        self.norm = nn.LayerNorm(width, eps=model.fusion_layer_norm_eps)

    def forward(self, own_BSLD: Tensor, predicted_BSLD: Tensor) -> Tensor:
        """Returns (B, width)."""
        pair_BLD = join_slices(torch.cat([own_BSLD, predicted_BSLD], dim=-1))
        features_BLD = F.gelu(self.compare(pair_BLD))
        weights_BNL = self.query(features_BLD).float().softmax(dim=1).transpose(1, 2).to(features_BLD.dtype)
        values_BNLD = features_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pooled_BD = (weights_BNL.unsqueeze(2) @ values_BNLD).flatten(1)
        return self.norm(pooled_BD.to(self.norm.weight.dtype))  # fp32 under autocast, on a CPU as on a GPU


class Head(nn.Module):
    """Two layers to one logit."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width_in, width)
        self.fc2 = nn.Linear(width, 1)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BD.to(self.fc1.weight.dtype)))).squeeze(-1).float()


class Classifier(nn.Module):
    """All slices of both modalities, no mask, to three logits.

    The video and the audio head read their modality's pooled vector. The overall head reads both and, sorted over
    slices so that order does not matter, how well sound and picture agree in each slice: the similarity that
    pretraining contrasted, and the cosines of A2V and V2A with the tokens that they predict.

    Args:
        pretrain: what pretraining contrasted, and start and floor of the temperature, which scales the agreements.
        finetune: dropout of the pooled vectors and of whole modalities.
    """

    def __init__(self, clip: ClipConfig, model: ModelConfig, pretrain: PretrainConfig, finetune: FinetuneConfig):
        super().__init__()
        video, audio = video_grid(clip, model), audio_grid(clip, model)
        width = model.decoder.width
        self.config = model
        self.agreement_level: ContrastiveLevel = (
            "slice" if pretrain.contrastive_level == "clip" else pretrain.contrastive_level
        )
        self.head_dropout = finetune.head_dropout
        self.modality_dropout = finetune.modality_dropout
        self.video_encoder = Encoder(video, model, "video")
        self.audio_encoder = Encoder(audio, model, "audio")
        self.a2v = CrossModal(audio.tokens_per_slice, video.tokens_per_slice, clip.num_slices, model)
        self.v2a = CrossModal(video.tokens_per_slice, audio.tokens_per_slice, clip.num_slices, model)
        self.temperature = Temperature(pretrain.temperature, pretrain.temperature_min)
        self.video_pool = AttentivePool(model)
        self.audio_pool = AttentivePool(model)
        self.video_head = Head(width, width)
        self.audio_head = Head(width, width)
        self.overall_head = Head(2 * width + NUM_AGREEMENTS * clip.num_slices, width)

    def forward(self, video_BTCHW: Tensor, mel_BMF: Tensor, seed_B: Tensor) -> Logits:
        """
        Args:
            video_BTCHW: ImageNet-normalised frames.
            mel_BMF: normalised log-mel, time first.
            seed_B: int64, one per clip; keys dropout in training, without effect in evaluation.
        """
        video_BSLD = self.video_encoder(patchify_video(video_BTCHW, self.config), seed_B)
        audio_BSLD = self.audio_encoder(patchify_audio(mel_BMF, self.config), seed_B)
        video_from_audio, audio_from_video = self.a2v(audio_BSLD), self.v2a(video_BSLD)
        video_BD = self._dropout(self.video_pool(video_BSLD, video_from_audio), seed_B, "video")
        audio_BD = self._dropout(self.audio_pool(audio_BSLD, audio_from_video), seed_B, "audio")
        agreement_BD = torch.cat(
            [
                slice_agreement(
                    contrast_embeddings(video_BSLD, self.agreement_level),
                    contrast_embeddings(audio_BSLD, self.agreement_level),
                ),
                slice_agreement(video_BSLD, video_from_audio),
                slice_agreement(audio_BSLD, audio_from_video),
            ],
            dim=1,
        )
        overall_BD = self._one_modality(video_BD, audio_BD, agreement_BD / self.temperature(), seed_B)
        return Logits(self.overall_head(overall_BD), self.video_head(video_BD), self.audio_head(audio_BD))

    def _dropout(self, x_BD: Tensor, seed_B: Tensor, name: str) -> Tensor:
        if not self.training or self.head_dropout == 0:
            return x_BD
        kept_BD = seeding.uniform(seed_B, f"head_dropout/{name}", x_BD.shape[1]) >= self.head_dropout
        return x_BD * (kept_BD / (1 - self.head_dropout)).to(x_BD.dtype)

    def _one_modality(self, video_BD: Tensor, audio_BD: Tensor, agreement_BD: Tensor, seed_B: Tensor) -> Tensor:
        """Joins what the overall head reads; modality dropout blanks one modality and the agreement with it."""
        if self.training and self.modality_dropout > 0:
            no_video_B, no_audio_B = blanked_modalities(seed_B, self.modality_dropout)
            video_BD = video_BD.masked_fill(no_video_B[:, None], 0)
            audio_BD = audio_BD.masked_fill(no_audio_B[:, None], 0)
            agreement_BD = agreement_BD.masked_fill((no_video_B | no_audio_B)[:, None], 0)
        return torch.cat([video_BD, audio_BD, agreement_BD.to(video_BD.dtype)], dim=1)


def blanked_modalities(seed_B: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """Draws which clips the overall head reads without their picture, and which without their sound.

    Args:
        chance: of one or the other; half of it each.

    Returns:
        no_video_B, no_audio_B: bool, never both true. The loss has to judge such a clip by what is left of it.
    """
    draw_B = seeding.uniform(seed_B, "modality_dropout")
    return draw_B < chance / 2, draw_B >= 1 - chance / 2


def slice_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of two sets of features per slice, (B, S), ascending; tokens of a slice are averaged."""
    cosine_BS = F.cosine_similarity(first.float(), second.float(), dim=-1)
    if cosine_BS.ndim == 3:
        cosine_BS = cosine_BS.mean(dim=2)
    return cosine_BS.sort(dim=1).values
