"""Masked-token reconstruction in the units of each patch."""

from torch import Tensor

VARIANCE_FLOOR = 1e-6


def normalise_patches(patches_BKP: Tensor, channels: int) -> Tensor:
    """Gives every patch zero mean and unit variance, each colour channel for itself.

    Args:
        patches_BKP: values ordered (channel, rest), as `patchify_video` lays them out; float32.
        channels: 3 for video, 1 for sound.
    """
    patches_BKCP = patches_BKP.unflatten(-1, (channels, -1))
    mean, std = _statistics(patches_BKCP)
    return ((patches_BKCP - mean) / std).flatten(-2)


def denormalise_patches(predicted_BKP: Tensor, patches_BKP: Tensor, channels: int) -> Tensor:
    """Puts predictions back on the scale of the true patches, for pictures."""
    mean, std = _statistics(patches_BKP.unflatten(-1, (channels, -1)))
    return (predicted_BKP.float().unflatten(-1, (channels, -1)) * std + mean).flatten(-2)


def reconstruction_loss_per_clip(predicted_BKP: Tensor, target_BKP: Tensor) -> Tensor:
    """Mean squared error of each clip, (B,) float32; every clip hides equally many tokens."""
    return (predicted_BKP.float() - target_BKP).square().mean(dim=(1, 2))


def _statistics(patches_BKCP: Tensor) -> tuple[Tensor, Tensor]:
    mean = patches_BKCP.mean(dim=-1, keepdim=True)
    variance = patches_BKCP.var(dim=-1, keepdim=True, unbiased=False)
    return mean, (variance + VARIANCE_FLOOR).sqrt()
