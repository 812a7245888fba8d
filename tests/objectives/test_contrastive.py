"""InfoNCE against three lines, and the same loss and gradient on one and two processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from avff.errors import ConfigError
from avff.objectives.contrastive import contrastive_loss

CLIPS, SLICES, WIDTH, RANKS = 8, 3, 5, 2
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


class Embed(torch.nn.Module):
    """A network small enough to compare gradients of, its temperature included."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.video, self.audio = torch.nn.Linear(WIDTH, 4).double(), torch.nn.Linear(WIDTH, 4).double()
        self.temperature = torch.nn.Parameter(torch.tensor([0.2], dtype=torch.float64))

    def forward(self, video: torch.Tensor, audio: torch.Tensor, group_size: int) -> torch.Tensor:
        return contrastive_loss(self.video(video), self.audio(audio), self.temperature, group_size)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    results = {}
    for group_size in GROUP_SIZES:
        # From each group of the global batch this rank takes its run, as the loader does (DESIGN §6).
        runs = torch.arange(CLIPS).view(CLIPS // group_size, RANKS, group_size // RANKS)[:, rank].flatten()
        model = Embed()
        loss = model(*(x[runs] for x in embeddings()), group_size)
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= RANKS
        results[group_size] = loss.detach(), [p.grad for p in model.parameters()]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=RANKS)
    for group_size in GROUP_SIZES:
        model = Embed()
        loss = model(*embeddings(), group_size)
        loss.backward()
        for rank in range(RANKS):
            their_loss, gradients = torch.load(tmp_path / f"{rank}.pt")[group_size]
            torch.testing.assert_close(their_loss, loss.detach())
            for theirs, parameter in zip(gradients, model.parameters(), strict=True):
                torch.testing.assert_close(theirs, parameter.grad)
