"""Patches and the grid of tokens they form: the one place that fixes token order.

Tokens are time-major in both modalities: video (time, height, width), audio (time, frequency). A run of tokens is
therefore a run of time, and slice k of the sound covers the same time as slice k of the picture.

Further shape suffixes here: `P` values of one patch, `L` tokens, `S` slices, `K` tokens of several slices.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from avff.config import ClipConfig, ModelConfig


@dataclass(frozen=True)
class TokenGrid:
    """Token counts of one modality.

    Attributes:
        shape: tokens per axis, time first: (time, height, width) or (time, frequency).
        patch_values: numbers in one patch.
        num_slices: equal runs of time.
    """

    shape: tuple[int, ...]
    patch_values: int
    num_slices: int

    @property
    def num_tokens(self) -> int:
        total = 1
        for count in self.shape:
            total *= count
        return total

    @property
    def tokens_per_slice(self) -> int:
        return self.num_tokens // self.num_slices

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Tokens per axis within one slice."""
        return (self.shape[0] // self.num_slices, *self.shape[1:])


def video_grid(clip: ClipConfig, model: ModelConfig) -> TokenGrid:
    side = clip.image_size // model.patch_size
    return TokenGrid(
        shape=(clip.num_frames // model.tubelet_frames, side, side),
        patch_values=3 * model.tubelet_frames * model.patch_size**2,
        num_slices=clip.num_slices,
    )


def audio_grid(clip: ClipConfig, model: ModelConfig) -> TokenGrid:
    return TokenGrid(
        shape=(clip.num_mel_frames // model.mel_patch_frames, clip.num_mel_bins // model.mel_patch_bins),
        patch_values=model.mel_patch_frames * model.mel_patch_bins,
        num_slices=clip.num_slices,
    )


def patchify_video(video_BTCHW: Tensor, model: ModelConfig) -> Tensor:
    """Cuts tubelets; values inside a patch are ordered (colour, time, height, width) as a Conv3d kernel's are."""
    return rearrange(
        video_BTCHW,
        "b (t pt) c (h ph) (w pw) -> b (t h w) (c pt ph pw)",
        pt=model.tubelet_frames,
        ph=model.patch_size,
        pw=model.patch_size,
    )


def unpatchify_video(patches_BLP: Tensor, grid: TokenGrid, model: ModelConfig) -> Tensor:
    """Inverse of `patchify_video`."""
    time, height, width = grid.shape
    return rearrange(
        patches_BLP,
        "b (t h w) (c pt ph pw) -> b (t pt) c (h ph) (w pw)",
        t=time,
        h=height,
        w=width,
        pt=model.tubelet_frames,
        ph=model.patch_size,
        pw=model.patch_size,
    )


def patchify_audio(mel_BMF: Tensor, model: ModelConfig) -> Tensor:
    """Cuts blocks of time by frequency, time first in token order and inside the patch."""
    return rearrange(mel_BMF, "b (t pt) (f pf) -> b (t f) (pt pf)", pt=model.mel_patch_frames, pf=model.mel_patch_bins)


def unpatchify_audio(patches_BLP: Tensor, grid: TokenGrid, model: ModelConfig) -> Tensor:
    """Inverse of `patchify_audio`."""
    time, bins = grid.shape
    return rearrange(
        patches_BLP,
        "b (t f) (pt pf) -> b (t pt) (f pf)",
        t=time,
        f=bins,
        pt=model.mel_patch_frames,
        pf=model.mel_patch_bins,
    )


def split_slices(tokens_BLD: Tensor, num_slices: int) -> Tensor:
    """(B, L, D) to (B, S, L / S, D): slice k holds the tokens of the k-th run of time."""
    return rearrange(tokens_BLD, "b (s l) d -> b s l d", s=num_slices)


def join_slices(tokens_BSLD: Tensor) -> Tensor:
    """Inverse of `split_slices`."""
    return rearrange(tokens_BSLD, "b s l d -> b (s l) d")


def take_slices(tokens_BSLD: Tensor, slices_BS: Tensor) -> Tensor:
    """Gathers whole slices per clip, in the order asked for; what a slice holds may have any shape.

    Args:
        slices_BS: int64 indices; as many per clip for every clip, so shapes stay static.
    """
    batch, num_slices = tokens_BSLD.shape[:2]
    # One index_select over (clip, slice) rows copies each slice as a block; `gather` would index every number.
    rows_BS = slices_BS + num_slices * torch.arange(batch, device=slices_BS.device)[:, None]
    taken = tokens_BSLD.flatten(0, 1).index_select(0, rows_BS.flatten())
    return taken.unflatten(0, slices_BS.shape)
