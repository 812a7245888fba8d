"""Converts the weights of a source and runs our encoder on them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from avff.config import Config, Modality
from avff.models.encoder import Encoder
from avff.models.importers import source as importing
from avff.models.importers.source import Conversion, Source
from avff.models.patches import audio_grid, join_slices, patchify_audio, patchify_video, video_grid

TOLERANCE = 1e-4
"""Largest difference of a float32 token from the source's own."""


def convert(source: Source, weights: Mapping[str, Tensor], config: Config) -> Conversion:
    return importing.convert(source, weights, "published.pth", config)


def encoder_with(tensors: Mapping[str, Tensor], modality: Modality, config: Config) -> Encoder:
    """Our encoder with all of its weights taken from `tensors`."""
    grid = (video_grid if modality == "video" else audio_grid)(config.clip, config.model)
    encoder = Encoder(grid, config.model, modality)
    prefix = f"{modality}_encoder."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    encoder.load_state_dict(own)
    return encoder.eval()


@torch.no_grad()
def audio_tokens(tensors: Mapping[str, Tensor], config: Config, mel_BMF: Tensor) -> Tensor:
    """(B, L, D) of our audio encoder."""
    patches = patchify_audio(mel_BMF, config.model)
    return join_slices(encoder_with(tensors, "audio", config)(patches, torch.zeros(len(mel_BMF), dtype=torch.long)))


@torch.no_grad()
def video_tokens(tensors: Mapping[str, Tensor], config: Config, video_BTCHW: Tensor) -> Tensor:
    """(B, L, D) of our video encoder."""
    patches = patchify_video(video_BTCHW, config.model)
    return join_slices(encoder_with(tensors, "video", config)(patches, torch.zeros(len(patches), dtype=torch.long)))


def cosine(a_BLD: Tensor, b_BLD: Tensor) -> float:
    """Mean over all tokens."""
    return torch.cosine_similarity(a_BLD, b_BLD, dim=-1).mean().item()


def click(config: Config, mel_frame: int) -> Tensor:
    """(1, M, F) silence but for one mel frame; bins differ, so that no two axes look alike."""
    mel_BMF = torch.zeros(1, config.clip.num_mel_frames, config.clip.num_mel_bins)
    mel_BMF[0, mel_frame] = torch.linspace(1, 5, config.clip.num_mel_bins)
    return mel_BMF


@torch.no_grad()
def change_by_click(tensors: Mapping[str, Tensor], config: Config, mel_frame: int) -> Tensor:
    """(T, F, D): what a click adds to the patch embedding of silence, over the grid of tokens."""
    encoder, mel_BMF = encoder_with(tensors, "audio", config), click(config, mel_frame)
    loud, silent = (encoder.patch_embed(patchify_audio(mel, config.model)) for mel in (mel_BMF, 0 * mel_BMF))
    return (loud - silent)[0].unflatten(0, audio_grid(config.clip, config.model).shape)


def touched(change_TFD: Tensor) -> list[int]:
    """Time steps with any change."""
    return change_TFD.abs().amax(dim=(1, 2)).gt(1e-6).nonzero().flatten().tolist()
