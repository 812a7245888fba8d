"""What lies on a grid of tokens, resampled for a clip with another one: position tables, and the token maps of A2V/V2A."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from avff.config import Config, Modality
from avff.models.patches import TokenGrid, audio_grid, video_grid
from avff.models.positions import resample_grid


@dataclass(frozen=True)
class Resample:
    """One tensor's change of grid: which axis lies on which grid of tokens, before and after.

    Attributes:
        axes: per tensor axis the old and new grid.
        summed: axes that the network sums over; values there shrink as their count grows, so that sums keep scale.
    """

    axes: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]
    summed: tuple[int, ...] = ()

    def apply(self, tensor: Tensor) -> Tensor:
        for axis, (old, new) in self.axes.items():
            line = tensor.float().movedim(axis, 0)
            count = len(line)
            resampled = resample_grid(line.reshape(count, -1), old, new)
            if axis in self.summed:
                resampled = resampled * (count / len(resampled))
            tensor = resampled.reshape(-1, *line.shape[1:]).movedim(0, axis)
        return tensor.contiguous()


def token_grids(config: Config) -> dict[Modality, TokenGrid]:
    """Returns the tokens of both modalities."""
    return {"video": video_grid(config.clip, config.model), "audio": audio_grid(config.clip, config.model)}


def changes_of_grid(
    shapes: Mapping[Modality, tuple[int, ...]], num_slices: int | None, target: Config
) -> dict[str, Resample]:
    """Returns name -> how to resample it, for the tensors whose grid changes.

    Args:
        shapes: tokens per axis that the tensors are made for, of the modalities they hold.
        num_slices: that A2V and V2A were made for; None where the tensors hold neither.
    """
    new = token_grids(target)
    changes: dict[str, Resample] = {}
    for modality, shape in shapes.items():
        if shape != new[modality].shape:
            table = Resample({1: (shape, new[modality].shape)})
            changes |= {f"{modality}_{part}.position_table": table for part in ("encoder", "decoder")}
    if num_slices is not None:
        old = {modality: TokenGrid(shape, 0, num_slices) for modality, shape in shapes.items()}
        changes |= _cross_modal("a2v", old["audio"], new["audio"], old["video"], new["video"])
        changes |= _cross_modal("v2a", old["video"], new["video"], old["audio"], new["audio"])
    return changes


def _cross_modal(
    name: str, given_old: TokenGrid, given_new: TokenGrid, wanted_old: TokenGrid, wanted_new: TokenGrid
) -> dict[str, Resample]:
    changes: dict[str, Resample] = {}
    if given_old.num_slices != given_new.num_slices:
        changes[f"{name}.slice_position"] = Resample({1: ((given_old.num_slices,), (given_new.num_slices,))})
    rows, columns = (wanted_old.slice_shape, wanted_new.slice_shape), (given_old.slice_shape, given_new.slice_shape)
    if rows[0] != rows[1]:
        changes[f"{name}.token_map.bias"] = Resample({0: rows})
    axes = {axis: grids for axis, grids in enumerate((rows, columns)) if grids[0] != grids[1]}
    if axes:
        changes[f"{name}.token_map.weight"] = Resample(axes, summed=(1,))
    return changes
