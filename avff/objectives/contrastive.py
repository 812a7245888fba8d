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

    This rank's pictures look for their sounds among those of all ranks, and its sounds for their pictures: of the
    similarities it computes its own rows alone, so that its work grows with G and not with its square. Embeddings
    are gathered with gradient, and every rank holds equally many, so that the mean of the losses over ranks, and
    the gradient that data parallelism averages, are those of one process holding all clips.

    Args:
        video_BSD, audio_BSD: float32 embeddings of this rank's clips, any length; normalised here.
        temperature: (1,) float32.
        group_size: G, clips of one contrastive group over all ranks.

    Returns:
        This rank's share, a scalar: the mean over its own pictures and sounds.

    Source:
        docs/method.md (L_c): InfoNCE over B x K pairs of slice means.
    """
    ranks, clips = distributed.world_size(), len(video_BSD)
    if ranks * clips % group_size or group_size % ranks:
        raise ConfigError(
            f"pretrain.contrastive_group_size {group_size} has to divide the {ranks * clips} clips of one forward pass "
            f"({clips} on each of {ranks} ranks) and be a multiple of the ranks"
        )
    # Each rank holds an equal run of every group, one group after another: Q of a group's N pairs.
    run = group_size // ranks
    own_2BSD = F.normalize(torch.stack([video_BSD, audio_BSD]), dim=-1)
    sought_R2BSD = distributed.all_gather_with_gradient(own_2BSD.flip(0))
    own_2GQD = rearrange(own_2BSD, "m (g b) s d -> m g (b s) d", b=run)
    sought_2GND = rearrange(sought_R2BSD, "r m (g b) s d -> m g (r b s) d", b=run)
    logits_2GQN = (own_2GQD / temperature) @ sought_2GND.transpose(-1, -2)
    num_own = own_2GQD.shape[2]
    positive_Q = torch.arange(num_own, device=video_BSD.device) + distributed.rank() * num_own
    positive_2GQ = positive_Q.expand(logits_2GQN.shape[:-1])
    return F.cross_entropy(logits_2GQN.flatten(0, 2), positive_2GQ.flatten())
