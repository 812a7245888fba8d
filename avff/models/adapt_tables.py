"""What lies on a grid of tokens, made fit for the target's: resampled, or cut where a table cannot be resampled."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from avff.config import Config, Modality
from avff.models.importers.source import Conversion
from avff.models.ledger import KeyLedger
from avff.models.regrid import changes_of_grid, token_grids


def fit_tables(
    tensors: Mapping[str, Tensor], conversion: Conversion, target: Config, ledger: KeyLedger
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the tensors on the target's grids, and why some cannot be.

    A table of `conversion.fixed_tables` keeps its first rows where the target has fewer time steps and the same rows
    otherwise. What else lies on a grid is resampled.
    """
    changes = changes_of_grid(conversion.grids, conversion.num_slices, target)
    ledger.fixed_tables = {name: why for name, why in conversion.fixed_tables.items() if name in tensors}
    adapted, problems = dict(tensors), []
    for name in filter(changes.__contains__, tensors):
        if name not in ledger.fixed_tables:
            adapted[name] = changes[name].apply(tensors[name])
            ledger.interpolated[name] = f"{list(tensors[name].shape)} -> {list(adapted[name].shape)}"
        elif problem := _why_not_cut(name, conversion, target):
            problems.append(f"{problem}. {name} can be cut, not interpolated: {ledger.fixed_tables[name]}")
        else:
            kept, held = math.prod(_grids(name, conversion, target)[1]), tensors[name].shape[1]
            adapted[name] = tensors[name][:, :kept].contiguous()
            ledger.notes.append(f"the first {kept} of its {held} positions are kept")
    return adapted, problems


def fixed_tables_of(sidecar: Mapping[str, Any], config: Config) -> tuple[dict[str, str], list[str]]:
    """Returns the tables of a file of ours that cannot be resampled, and what to note of those that may be.

    A file that this project converted says which. A run learns its position tables, so that those of its checkpoints
    may be resampled; they may not where the run froze the encoders that it took from such a file.
    """
    own = sidecar.get("ledger", {}).get("fixed_tables", {})
    parents = [parent.get("fixed_tables", {}) for parent in sidecar.get("parents", [])]
    if config.stage == "finetune" and config.finetune.encoders != "train":
        own = own | {name: why for tables in parents for name, why in tables.items()}
    earlier = sorted(_all_fixed(sidecar.get("parents", [])) - own.keys())
    notes = [
        f"{name} could not be resampled before it was trained here; see how well it can be now" for name in earlier
    ]
    return own, notes


def _all_fixed(parents: Collection[Mapping[str, Any]]) -> set[str]:
    return {name for parent in parents for name in {*parent.get("fixed_tables", {}), *_all_fixed(parent["parents"])}}


def _grids(name: str, conversion: Conversion, target: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    modality: Modality = "video" if name.startswith("video") else "audio"
    return conversion.grids[modality], token_grids(target)[modality].shape


def _why_not_cut(name: str, conversion: Conversion, target: Config) -> str:
    """Says why the first rows of a table are not those of the target; empty where they are."""
    old, new = _grids(name, conversion, target)
    if new[1:] != old[1:]:
        bins = old[-1] * conversion.patches["audio"][1]
        return f"it has {_times(old[1:])} tokens per time step, the target {_times(new[1:])}" + (
            f"; give clip.num_mel_bins={bins}" if name.startswith("audio") else ""
        )
    if new[0] > old[0]:
        return f"its table has {math.prod(old)} positions, the target {math.prod(new)} tokens; shorten the clip" + (
            ", or raise clip.hop_samples" if name.startswith("audio") else ""
        )
    return ""


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
