"""Stages 1 and 2: reconstruct what is hidden, contrast sound with picture, fool the critics (docs/method.md)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avff.batch import ModelInputs
from avff.config import IMAGENET_MEAN, IMAGENET_STD, Config
from avff.models.build import build_critics, build_pretrain_model
from avff.models.patches import (
    audio_grid,
    join_slices,
    patchify_audio,
    patchify_video,
    split_slices,
    take_slices,
    unpatchify_audio,
    unpatchify_video,
    video_grid,
)
from avff.models.pretrain import PretrainOutput
from avff.objectives.adversarial import critic_loss, generator_loss
from avff.objectives.cached_contrast import CachedContrast, Embeddings, cache_contrast, cached_loss
from avff.objectives.contrastive import contrastive_loss
from avff.objectives.losses import CriticInputs, StepLosses
from avff.objectives.reconstruction import denormalise_patches, normalise_patches, reconstruction_loss_per_clip

RGB, MEL = 3, 1
"""Channels of a video and of an audio patch; each is normalised for itself."""


class HiddenPatches(NamedTuple):
    """True values of the patches that the model did not see, float32."""

    video_BKP: Tensor
    audio_BKP: Tensor


class Reconstruction(NamedTuple):
    """Pictures of what the model sees and fills in, for panels.

    Attributes:
        video_BTCHW, video_filled_BTCHW: frames in [0, 1]; in the second, hidden slices hold predictions, on the
            scale of the true patches.
        video_visible_BT: bool per frame.
        mel_BMF, mel_filled_BMF: natural log of mel power, likewise.
        mel_visible_BM: bool per spectrogram frame.
    """

    video_BTCHW: Tensor
    video_filled_BTCHW: Tensor
    video_visible_BT: Tensor
    mel_BMF: Tensor
    mel_filled_BMF: Tensor
    mel_visible_BM: Tensor


class PretrainObjective:
    """Owns the pretraining network and its critics, and turns inputs into losses.

    Attributes:
        model: to be wrapped by one engine.
        critics: to be wrapped by another; None when `pretrain.adversarial_weight` is 0.
    """

    def __init__(self, config: Config):
        self.config = config
        self.weights = config.pretrain
        self.model: nn.Module = build_pretrain_model(config)
        self.critics: nn.Module | None = build_critics(config) if config.pretrain.adversarial_weight > 0 else None

    def cache_group(self, model: nn.Module, micro_batches: Iterable[ModelInputs]) -> list[CachedContrast]:
        """Runs the first of two passes over the micro batches that together hold one contrastive group."""
        with torch.no_grad():
            parts = [_embeddings(model(x.video_BTCHW, x.mel_BMF, x.seed_B)) for x in micro_batches]
        return cache_contrast(parts, self.weights.contrastive_group_size)

    def model_losses(
        self,
        model: nn.Module,
        critics: nn.Module | None,
        inputs: ModelInputs,
        cached: CachedContrast | None = None,
    ) -> StepLosses:
        """Runs the model once and returns its losses.

        Args:
            model, critics: `self.model` and `self.critics`, possibly wrapped.
            cached: what `cache_group` returned for these inputs; None where this pass holds whole groups.
        """
        output: PretrainOutput = model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
        target = self._targets(inputs, output)
        video = reconstruction_loss_per_clip(output.video_BKP, target.video_BKP).mean()
        audio = reconstruction_loss_per_clip(output.audio_BKP, target.audio_BKP).mean()
        total = self.weights.reconstruction_weight * (video + audio)
        terms = {"reconstruction_video": video, "reconstruction_audio": audio, "temperature": output.temperature[0]}
        if self.weights.contrastive_weight > 0:
            if cached is None:
                contrast = contrastive_loss(*_embeddings(output), self.weights.contrastive_group_size)
            else:
                contrast = cached_loss(cached, _embeddings(output))
            total = total + self.weights.contrastive_weight * contrast
            terms["contrastive"] = contrast
        critic_inputs = None
        if critics is not None:
            adversarial = generator_loss(critics, output.video_BKP, output.audio_BKP)
            total = total + self.weights.adversarial_weight * adversarial
            terms["adversarial"] = adversarial
            critic_inputs = CriticInputs(
                output.video_BKP.detach(), target.video_BKP, output.audio_BKP.detach(), target.audio_BKP, inputs.seed_B
            )
        if output.a2v_cosine_B is not None and output.v2a_cosine_B is not None:
            terms |= {"a2v_cosine": output.a2v_cosine_B.mean(), "v2a_cosine": output.v2a_cosine_B.mean()}
        terms = {"loss": total, **terms}
        return StepLosses(total, {name: term.detach() for name, term in terms.items()}, critic_inputs)

    def critic_losses(self, critics: nn.Module, critic_inputs: CriticInputs) -> StepLosses:
        """Returns the critics' own losses on what the model predicted; no gradient reaches the model."""
        return critic_loss(critics, critic_inputs, self.weights.gradient_penalty_weight)

    @torch.no_grad()
    def clip_losses(self, model: nn.Module, inputs: ModelInputs) -> dict[str, Tensor]:
        """Returns what validation averages, (B,) float32 each: nothing here depends on the rest of the batch."""
        output: PretrainOutput = model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
        target = self._targets(inputs, output)
        values = {
            "reconstruction_video": reconstruction_loss_per_clip(output.video_BKP, target.video_BKP),
            "reconstruction_audio": reconstruction_loss_per_clip(output.audio_BKP, target.audio_BKP),
        }
        values["reconstruction"] = values["reconstruction_video"] + values["reconstruction_audio"]
        if output.a2v_cosine_B is not None and output.v2a_cosine_B is not None:
            values |= {"a2v_cosine": output.a2v_cosine_B, "v2a_cosine": output.v2a_cosine_B}
        return values

    @torch.no_grad()
    def reconstruct(self, model: nn.Module, inputs: ModelInputs) -> Reconstruction:
        """Fills in the hidden slices of each clip, for people to look at."""
        clip, net = self.config.clip, self.config.model
        output: PretrainOutput = model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
        hidden = self._hidden_patches(inputs, output)
        video_BKP = denormalise_patches(output.video_BKP, hidden.video_BKP, RGB)
        audio_BKP = denormalise_patches(output.audio_BKP, hidden.audio_BKP, MEL)
        masks = output.masks
        video_BLP = self._fill(patchify_video(inputs.video_BTCHW, net), video_BKP, masks.audio_visible_BS)
        audio_BLP = self._fill(patchify_audio(inputs.mel_BMF, net), audio_BKP, masks.video_visible_BS)
        filled_BMF = unpatchify_audio(audio_BLP, audio_grid(clip, net), net)
        return Reconstruction(
            video_BTCHW=_pixels(inputs.video_BTCHW),
            video_filled_BTCHW=_pixels(unpatchify_video(video_BLP, video_grid(clip, net), net)),
            video_visible_BT=self._visible(masks.video_visible_BS, clip.num_frames),
            mel_BMF=inputs.mel_BMF * clip.mel_std + clip.mel_mean,
            mel_filled_BMF=filled_BMF * clip.mel_std + clip.mel_mean,
            mel_visible_BM=self._visible(masks.audio_visible_BS, clip.num_mel_frames),
        )

    def _hidden_patches(self, inputs: ModelInputs, output: PretrainOutput) -> HiddenPatches:
        # A slice is a run of time: whole frames, cut out before they become patches.
        slices, net = self.config.clip.num_slices, self.config.model
        video_BSTCHW = inputs.video_BTCHW.unflatten(1, (slices, -1))
        mel_BSMF = inputs.mel_BMF.unflatten(1, (slices, -1))
        hidden_BTCHW = take_slices(video_BSTCHW, output.masks.audio_visible_BS).flatten(1, 2)
        hidden_BMF = take_slices(mel_BSMF, output.masks.video_visible_BS).flatten(1, 2)
        return HiddenPatches(patchify_video(hidden_BTCHW, net).float(), patchify_audio(hidden_BMF, net).float())

    def _targets(self, inputs: ModelInputs, output: PretrainOutput) -> HiddenPatches:
        hidden = self._hidden_patches(inputs, output)
        return HiddenPatches(normalise_patches(hidden.video_BKP, RGB), normalise_patches(hidden.audio_BKP, MEL))

    def _fill(self, patches_BLP: Tensor, predicted_BKP: Tensor, hidden_BS: Tensor) -> Tensor:
        filled_BSLP = split_slices(patches_BLP.float(), self.config.clip.num_slices).clone()
        clip_B1 = torch.arange(len(filled_BSLP), device=filled_BSLP.device)[:, None]
        filled_BSLP[clip_B1, hidden_BS] = split_slices(predicted_BKP, hidden_BS.shape[1])
        return join_slices(filled_BSLP)

    def _visible(self, visible_BS: Tensor, num_frames: int) -> Tensor:
        slices = self.config.clip.num_slices
        shown_BS = torch.zeros(len(visible_BS), slices, dtype=torch.bool, device=visible_BS.device)
        return shown_BS.scatter(1, visible_BS, True).repeat_interleave(num_frames // slices, dim=1)


def _embeddings(output: PretrainOutput) -> Embeddings:
    return Embeddings(output.video_BSD, output.audio_BSD, output.temperature)


def _pixels(video_BTCHW: Tensor) -> Tensor:
    """ImageNet-normalised frames to [0, 1]; what a prediction puts outside is clipped."""
    mean_C11 = video_BTCHW.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std_C11 = video_BTCHW.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (video_BTCHW * std_C11 + mean_C11).clamp(0, 1)
