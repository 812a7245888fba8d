"""Position tables tell every token apart and survive a change of grid."""

import pytest
import torch

from avff.models.positions import resample_grid, sincos_table


@pytest.mark.parametrize(("grid", "width"), [((8, 14, 14), 768), ((4, 3, 2), 64), ((64, 8), 384), ((5, 3), 96)])
def test_every_token_has_its_own_row(grid: tuple[int, ...], width: int) -> None:
    table = sincos_table(grid, width)
    assert table.shape == (1, torch.Size(grid).numel(), width) and table.dtype == torch.float32
    assert len(table[0].unique(dim=0)) == table.shape[1]
    assert table.abs().max() <= 1


def test_the_first_axis_is_the_slowest() -> None:
    table = sincos_table((4, 3, 2), 60)[0].view(4, 3, 2, 60)
    assert torch.equal(table[:, 0, 0, :20], table[:, 2, 1, :20]), "time's channels do not depend on the place"
    assert torch.equal(table[0, 0, :, 40:], table[3, 2, :, 40:]), "the column's channels depend on nothing else"


def test_resampling_to_the_same_grid_is_the_identity() -> None:
    values = torch.randn(24, 5)
    assert torch.equal(resample_grid(values, (4, 3, 2), (4, 3, 2)), values)


def test_resampling_follows_a_ramp_along_each_axis() -> None:
    time, place = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    values = torch.stack([time, place], dim=-1).reshape(48, 2)
    resampled = resample_grid(values, (8, 6), (4, 12)).view(4, 12, 2)
    torch.testing.assert_close(resampled[:, 5, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    torch.testing.assert_close(resampled[2, 1:-1, 1], (torch.arange(12.0) / 2 - 0.25)[1:-1])
