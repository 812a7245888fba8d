"""What is contrasted: means per slice, per slice less the clip's mean, per clip."""

import pytest
import torch

from avff.models.contrast import contrast_embeddings


@pytest.fixture(name="tokens_BSLD")
def make_tokens():
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


def test_slice_and_clip_means(tokens_BSLD):
    torch.testing.assert_close(contrast_embeddings(tokens_BSLD, "slice")[1, 2], tokens_BSLD[1, 2].mean(dim=0))
    clip_B1D = contrast_embeddings(tokens_BSLD, "clip")
    assert clip_B1D.shape == (3, 1, 6)
    torch.testing.assert_close(clip_B1D[1, 0], tokens_BSLD[1].flatten(0, 1).mean(dim=0))


def test_centered_slices_cannot_tell_who_speaks_but_when(tokens_BSLD):
    """A feature that every token of a clip shares (a face, a voice, a background) leaves no trace."""
    shared_B11D = torch.randn(3, 1, 1, 6)
    centered = contrast_embeddings(tokens_BSLD, "centered_slice")
    torch.testing.assert_close(contrast_embeddings(tokens_BSLD + shared_B11D, "centered_slice"), centered)
    assert not torch.allclose(
        contrast_embeddings(tokens_BSLD + shared_B11D, "slice"), contrast_embeddings(tokens_BSLD, "slice")
    )
    assert not torch.allclose(contrast_embeddings(tokens_BSLD.flip(1), "centered_slice"), centered)
    torch.testing.assert_close(centered.sum(dim=1), torch.zeros(3, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", ["slice", "centered_slice", "clip"])
def test_one_clip_does_not_see_another(tokens_BSLD, level):
    changed = tokens_BSLD.clone()
    changed[1] += 1.0 + torch.arange(4.0)[:, None, None]
    torch.testing.assert_close(contrast_embeddings(changed, level)[0], contrast_embeddings(tokens_BSLD, level)[0])
