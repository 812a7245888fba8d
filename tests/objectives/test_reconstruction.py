"""Patch statistics: per patch and per colour."""

import torch

from avff.objectives.reconstruction import denormalise_patches, normalise_patches, reconstruction_loss_per_clip


def test_each_channel_of_each_patch_has_mean_0_and_variance_1() -> None:
    patches = torch.randn(2, 5, 3 * 8) * 4 + 7
    patches[:, :, 8:16] += 100
    normalised = normalise_patches(patches, channels=3).view(2, 5, 3, 8)
    torch.testing.assert_close(normalised.mean(dim=-1), torch.zeros(2, 5, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.var(dim=-1, unbiased=False), torch.ones(2, 5, 3), atol=1e-4, rtol=0)
    alone = normalise_patches(patches[:, :, 8:16], channels=1)
    torch.testing.assert_close(normalised[:, :, 1], alone)


def test_a_flat_patch_stays_finite() -> None:
    assert torch.equal(normalise_patches(torch.full((1, 1, 6), 3.0), channels=3), torch.zeros(1, 1, 6))


def test_denormalising_is_the_inverse() -> None:
    patches = torch.randn(2, 5, 24) * 4 + 7
    torch.testing.assert_close(denormalise_patches(normalise_patches(patches, 3), patches, 3), patches)


def test_loss_is_the_mean_square_of_each_clip() -> None:
    predicted, target = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    expected = torch.stack([((p - t) ** 2).sum() / 24 for p, t in zip(predicted, target, strict=True)])
    torch.testing.assert_close(reconstruction_loss_per_clip(predicted, target), expected)
