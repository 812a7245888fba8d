"""Symmetric InfoNCE between sound and picture, over groups that no resource setting can change."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from avff import distributed
from avff.errors import ConfigError


def contrastive_loss(video_BSD: Tensor, audio_BSD: Tensor, temperature: Tensor, group_size: int) -> Tensor:
    """Pulls the picture and the sound of one slice together and pushes all other pairs of the group apart.

    A group holds G clips of S slices, hence G x S pairs. The positive of the picture of slice s of clip i is the
    sound of slice s of clip i. Its negatives are the other G x S - 1 sounds of the group: other slices of the same
    clip, the same slice of other clips, and other slices of other clips. The reverse direction likewise; the two
    are averaged. At clip level S is 1 and the negatives are the G - 1 other clips.

    Clips are gathered over ranks with gradient: every rank computes the loss of every group, so its mean over
    ranks, and the gradient that data parallelism averages, are those of one process holding all clips.

    Args:
        video_BSD, audio_BSD: float32 embeddings of this rank's clips, any length; normalised here.
        temperature: (1,) float32.
        group_size: G, clips of one contrastive group over all ranks.

    Source:
        AVFF-SPEC §1.1: InfoNCE over B x K pairs of slice means.
    """
    video_GND = _gather_groups(F.normalize(video_BSD, dim=-1), group_size)
    audio_GND = _gather_groups(F.normalize(audio_BSD, dim=-1), group_size)
    logits_GNN = video_GND @ audio_GND.transpose(1, 2) / temperature
    groups, pairs = logits_GNN.shape[:2]
    target = torch.arange(pairs, device=logits_GNN.device).expand(groups, pairs)
    video_to_audio = F.cross_entropy(logits_GNN.transpose(1, 2), target)
    audio_to_video = F.cross_entropy(logits_GNN, target)
    return (video_to_audio + audio_to_video) / 2


def _gather_groups(x_BSD: Tensor, group_size: int) -> Tensor:
    """Returns (groups, group_size * S, D) in the order of the global batch.

    Each rank holds an equal run of every group, one group after another (DESIGN §6).
    """
    x_RBSD = distributed.all_gather_with_gradient(x_BSD)
    ranks, clips = x_RBSD.shape[:2]
    if ranks * clips % group_size or group_size % ranks:
        raise ConfigError(
            f"pretrain.contrastive_group_size {group_size} has to divide the {ranks * clips} clips of one forward pass "
            f"({clips} on each of {ranks} ranks) and be a multiple of the ranks"
        )
    return rearrange(x_RBSD, "r (g b) s d -> g (r b s) d", b=group_size // ranks)
