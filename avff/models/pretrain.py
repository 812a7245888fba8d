"""AVFF's pretraining network: two encoders, A2V and V2A, two decoders (docs/method.md)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avff.config import ClipConfig, ModelConfig, PretrainConfig
from avff.models.contrast import Temperature, contrast_embeddings
from avff.models.cross_modal import CrossModal
from avff.models.encoder import Decoder, Encoder
from avff.models.masking import SliceMasks, complementary_masks, merge_slices
from avff.models.patches import audio_grid, patchify_audio, patchify_video, take_slices, video_grid


class PretrainOutput(NamedTuple):
    """What one forward pass predicts. A NamedTuple, for DeepSpeed's ZeRO-3 hooks walk tuples.

    Attributes:
        masks: the slices each modality showed.
        video_BKP, audio_BKP: predicted (normalised) patches of the hidden slices, in the precision that autocast gives, else of the weights.
        video_BSD, audio_BSD: embeddings to contrast, float32, S = num_slices; (B, 1, D) at clip level.
        temperature: (1,) float32.
        a2v_cosine_B, v2a_cosine_B: how well the predicted tokens match the encoder's, detached; None with
            `mask_input`, where the hidden tokens were never encoded.
    """

    masks: SliceMasks
    video_BKP: Tensor
    audio_BKP: Tensor
    video_BSD: Tensor
    audio_BSD: Tensor
    temperature: Tensor
    a2v_cosine_B: Tensor | None
    v2a_cosine_B: Tensor | None


class PretrainModel(nn.Module):
    """Encodes both modalities, hides half the slices of each, predicts them from the other modality.

    Source:
        AVFF, CVPR 2024. Departures: per-slice A2V/V2A, time-major audio, decoder position tables, masks per clip
        (docs/method.md); `mask_input` hides the slices before the encoders instead of after them.
    """

    def __init__(self, clip: ClipConfig, model: ModelConfig, pretrain: PretrainConfig):
        super().__init__()
        video, audio = video_grid(clip, model), audio_grid(clip, model)
        self.config = model
        self.num_slices = clip.num_slices
        self.mask_input = pretrain.mask_input
        self.contrastive_level = pretrain.contrastive_level
        self.video_encoder = Encoder(video, model, "video")
        self.audio_encoder = Encoder(audio, model, "audio")
        self.a2v = CrossModal(audio.tokens_per_slice, video.tokens_per_slice, clip.num_slices, model)
        self.v2a = CrossModal(video.tokens_per_slice, audio.tokens_per_slice, clip.num_slices, model)
        self.video_decoder = Decoder(video, model, "video")
        self.audio_decoder = Decoder(audio, model, "audio")
        self.temperature = Temperature(pretrain.temperature, pretrain.temperature_min)

    def forward(self, video_BTCHW: Tensor, mel_BMF: Tensor, seed_B: Tensor) -> PretrainOutput:
        """
        Args:
            video_BTCHW: ImageNet-normalised frames.
            mel_BMF: normalised log-mel, time first.
            seed_B: int64, one per clip; masks and drop path hash it.
        """
        masks = complementary_masks(seed_B, self.num_slices)
        video_shown, audio_shown = masks if self.mask_input else (None, None)
        video_BSLD = self.video_encoder(patchify_video(video_BTCHW, self.config), seed_B, video_shown)
        audio_BSLD = self.audio_encoder(patchify_audio(mel_BMF, self.config), seed_B, audio_shown)
        visible_video = video_BSLD if self.mask_input else take_slices(video_BSLD, masks.video_visible_BS)
        visible_audio = audio_BSLD if self.mask_input else take_slices(audio_BSLD, masks.audio_visible_BS)

        # A2V speaks for the slices where audio is visible, which are the very slices that video hides.
        predicted_video = self.a2v(visible_audio, masks.audio_visible_BS)
        predicted_audio = self.v2a(visible_video, masks.video_visible_BS)
        fused_video = merge_slices(visible_video, predicted_video, masks.video_visible_BS, masks.audio_visible_BS)
        fused_audio = merge_slices(visible_audio, predicted_audio, masks.audio_visible_BS, masks.video_visible_BS)
        a2v_cosine_B = v2a_cosine_B = None
        if not self.mask_input:
            a2v_cosine_B = mean_cosine(predicted_video, take_slices(video_BSLD, masks.audio_visible_BS))
            v2a_cosine_B = mean_cosine(predicted_audio, take_slices(audio_BSLD, masks.video_visible_BS))
        return PretrainOutput(
            masks=masks,
            video_BKP=self.video_decoder(fused_video, masks.audio_visible_BS),
            audio_BKP=self.audio_decoder(fused_audio, masks.video_visible_BS),
            video_BSD=contrast_embeddings(video_BSLD, self.contrastive_level),
            audio_BSD=contrast_embeddings(audio_BSLD, self.contrastive_level),
            temperature=self.temperature(),
            a2v_cosine_B=a2v_cosine_B,
            v2a_cosine_B=v2a_cosine_B,
        )


@torch.no_grad()
def mean_cosine(predicted_BSLD: Tensor, target_BSLD: Tensor) -> Tensor:
    """Mean cosine between predicted and true tokens of each clip, (B,) float32, without gradient."""
    return F.cosine_similarity(predicted_BSLD.float(), target_BSLD.float(), dim=-1).mean(dim=(1, 2))
