"""Contrast over a group that one forward pass cannot hold: two passes with cached gradients.

The first pass embeds every micro batch of a group without gradient; the group's loss is then differentiated by the
embeddings and the temperature. The second pass embeds each micro batch again, now with gradient, and its backward
pass carries those derivatives on to the weights. By the chain rule that is the gradient of one big pass. What a
forward pass draws at random is keyed by the clip's seed, so both passes see the same embeddings.

Source:
    Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021 (GradCache).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avff.objectives.contrastive import contrastive_loss


class Embeddings(NamedTuple):
    """What one micro batch gives to the contrastive loss; as in `PretrainOutput`."""

    video_BSD: Tensor
    audio_BSD: Tensor
    temperature: Tensor


class CachedContrast(NamedTuple):
    """This rank's share of a group's contrastive loss, and the derivatives at the embeddings of one micro batch.

    Attributes:
        loss: scalar; the same for every micro batch of the group. Its mean over ranks is the group's loss.
        derivatives: by each of the embeddings, scaled so that the mean over micro batches and ranks is that of the
            group's loss.
    """

    loss: Tensor
    derivatives: Embeddings


def cache_contrast(parts: Sequence[Embeddings], group_size: int) -> list[CachedContrast]:
    """Computes this rank's share of one group's loss from embeddings alone; a collective.

    Args:
        parts: this rank's run of the group, one item per micro batch, without gradient.
        group_size: clips of the group over all ranks.

    Returns:
        One item per micro batch.
    """
    video_BSD = torch.cat([part.video_BSD for part in parts]).requires_grad_()
    audio_BSD = torch.cat([part.audio_BSD for part in parts]).requires_grad_()
    temperature = parts[0].temperature.clone().requires_grad_()
    loss = contrastive_loss(video_BSD, audio_BSD, temperature, group_size)
    by_video_BSD, by_audio_BSD, by_temperature = torch.autograd.grad(loss, (video_BSD, audio_BSD, temperature))
    # Accumulation takes the mean over micro batches. An embedding occurs in one of them, the temperature in all.
    sizes = [len(part.video_BSD) for part in parts]
    by_part = zip((len(parts) * by_video_BSD).split(sizes), (len(parts) * by_audio_BSD).split(sizes), strict=True)
    return [CachedContrast(loss.detach(), Embeddings(video, audio, by_temperature)) for video, audio in by_part]


def cached_loss(cached: CachedContrast, embeddings: Embeddings) -> Tensor:
    """Returns the value of the cached loss, with the cached derivatives as its gradient by the embeddings."""
    products = [(x * by_x).sum() for x, by_x in zip(embeddings, cached.derivatives, strict=True)]
    linear = torch.stack(products).sum()
    return cached.loss + (linear - linear.detach())
