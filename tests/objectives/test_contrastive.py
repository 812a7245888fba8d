"""InfoNCE against three lines, and the same loss and gradient on 1, 2 and 4 processes that share the work."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from avff.errors import ConfigError
from avff.objectives.cached_contrast import Embeddings, cache_contrast
from avff.objectives.contrastive import contrastive_loss

CLIPS, SLICES, WIDTH = 8, 3, 5
GROUP_SIZES = (8, 4)


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(CLIPS, SLICES, WIDTH, generator=rng, dtype=torch.float64) for _ in range(2))


def three_lines(video: torch.Tensor, audio: torch.Tensor, temperature: float) -> torch.Tensor:
    v, a = F.normalize(video.flatten(0, 1), dim=-1), F.normalize(audio.flatten(0, 1), dim=-1)
    logits = (v @ a.T / temperature).exp()
    return -(2 * logits.diag().log() - logits.sum(dim=0).log() - logits.sum(dim=1).log()).mean() / 2


def test_equals_three_lines() -> None:
    video, audio = embeddings()
    loss = contrastive_loss(video, audio, torch.tensor([0.1]), group_size=CLIPS)
    torch.testing.assert_close(loss, three_lines(video, audio, 0.1))


def test_groups_do_not_see_each_other() -> None:
    video, audio = embeddings()
    loss = contrastive_loss(video, audio, torch.tensor([0.1]), group_size=4)
    parts = [three_lines(video[i : i + 4], audio[i : i + 4], 0.1) for i in (0, 4)]
    torch.testing.assert_close(loss, torch.stack(parts).mean())


def test_matching_pairs_are_what_lowers_it() -> None:
    video, _ = embeddings()
    temperature = torch.tensor([0.1])
    matched = contrastive_loss(video, video, temperature, CLIPS)
    assert matched < contrastive_loss(video, video.roll(1, dims=0), temperature, CLIPS)
    assert matched < contrastive_loss(video, video.roll(1, dims=1), temperature, CLIPS), "other slices are negatives"


def test_a_group_that_does_not_fit_is_named() -> None:
    video, audio = embeddings()
    with pytest.raises(
        ConfigError, match=r"contrastive_group_size 3 has to divide the 8 clips of one forward pass \(8 on"
    ):
        contrastive_loss(video, audio, torch.tensor([0.1]), group_size=3)


def one_process(group_size: int) -> tuple[torch.Tensor, ...]:
    """Returns loss, gradients of pictures, sounds and temperature, and the FLOP of one process holding all clips."""
    video, audio = (x.requires_grad_() for x in embeddings())
    temperature = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as flop:
        loss = contrastive_loss(video, audio, temperature, group_size)
        loss.backward()
    return loss.detach(), video.grad, audio.grad, temperature.grad, torch.tensor(flop.get_total_flops())


def own_clips(rank: int, num_ranks: int, group_size: int) -> torch.Tensor:
    """From each group of the global batch a rank takes its run, as the loader does."""
    return torch.arange(CLIPS).view(CLIPS // group_size, num_ranks, -1)[:, rank].flatten()


def _worker(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    results = {}
    for group_size in GROUP_SIZES:
        own = own_clips(rank, num_ranks, group_size)
        video, audio = (x[own].requires_grad_() for x in embeddings())
        temperature = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
        with FlopCounterMode(display=False) as flop:
            loss = contrastive_loss(video, audio, temperature, group_size)
            loss.backward()
        found = loss.detach(), video.grad, audio.grad, temperature.grad, torch.tensor(flop.get_total_flops())
        results[group_size] = found
    # Two passes: here each micro batch is a clip, and a group all of them.
    own = own_clips(rank, num_ranks, CLIPS)
    video, audio = (x[own] for x in embeddings())
    temperature = torch.tensor([0.2], dtype=torch.float64)
    parts = [Embeddings(v, a, temperature) for v, a in zip(video.split(1), audio.split(1), strict=True)]
    cached = cache_contrast(parts, CLIPS)
    by_video, by_audio, by_temperature = zip(*(item.derivatives for item in cached), strict=True)
    micro_batches = len(parts)
    results["cached"] = (
        torch.stack([item.loss for item in cached]).mean(),
        torch.cat(by_video) / micro_batches,
        torch.cat(by_audio) / micro_batches,
        torch.stack(by_temperature).mean(dim=0),
    )
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=lambda num_ranks: f"{num_ranks} ranks")
def by_rank(request, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_worker, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.slow
@pytest.mark.parametrize("which", [*GROUP_SIZES, "cached"])
def test_the_mean_over_ranks_has_the_loss_and_gradient_of_one_process(by_rank, which) -> None:
    group_size = CLIPS if which == "cached" else which
    loss, by_video, by_audio, by_temperature, _ = one_process(group_size)
    losses, videos, audios, temperatures = zip(*(found[which][:4] for found in by_rank), strict=True)
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    torch.testing.assert_close(torch.stack(temperatures).mean(dim=0), by_temperature)
    num_ranks = len(by_rank)
    for rank in range(num_ranks):
        own = own_clips(rank, num_ranks, group_size)
        # Every clip is one rank's, so that of the mean over ranks only this rank's share is not 0.
        torch.testing.assert_close(videos[rank] / num_ranks, by_video[own])
        torch.testing.assert_close(audios[rank] / num_ranks, by_audio[own])


@pytest.mark.slow
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_a_rank_scores_its_own_pictures_and_sounds(by_rank, group_size) -> None:
    """A rank that took another's rows for its own would still have a loss."""
    video, audio = (F.normalize(x, dim=-1).view(-1, group_size * SLICES, WIDTH) for x in embeddings())
    logits_GNN = video @ audio.transpose(1, 2) / 0.2
    to_audio, to_video = (-logits_GNN.log_softmax(dim).diagonal(dim1=1, dim2=2) for dim in (2, 1))
    for rank, found in enumerate(by_rank):
        own = slice(rank * group_size * SLICES // len(by_rank), (rank + 1) * group_size * SLICES // len(by_rank))
        expected = (to_audio[:, own].mean() + to_video[:, own].mean()) / 2
        torch.testing.assert_close(found[group_size][0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_no_rank_multiplies_more_than_its_share_of_all_pairs(by_rank, group_size) -> None:
    pairs = CLIPS // group_size * (group_size * SLICES) ** 2
    forward_and_backward, directions = 3, 2
    total = forward_and_backward * directions * 2 * pairs * WIDTH
    assert one_process(group_size)[-1] == total
    assert [found[group_size][-1] for found in by_rank] == [total // len(by_rank)] * len(by_rank)
