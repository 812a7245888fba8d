"""Weights of one stage made fit for the next, with every key accounted for (DESIGN §8)."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avff.config import Config
from avff.errors import CheckpointError
from avff.models.build import build_model
from avff.models.patches import TokenGrid, audio_grid, video_grid
from avff.models.positions import resample_grid
from avff.models.weights import check_keys
from avff.strict_yaml import flatten

DROPPED_AT_STAGE_3 = ("video_decoder.", "audio_decoder.")
NEW_AT_STAGE_3 = ("video_pool.", "audio_pool.", "video_head.", "audio_head.", "overall_head.")

FIXED_FIELDS = (
    "size",
    "decoder_size",
    "patch_size",
    "tubelet_frames",
    "mel_patch_bins",
    "mel_patch_frames",
    "video_layer_norm_eps",
    "audio_layer_norm_eps",
    "fusion_layer_norm_eps",
)
"""Fields of the model section that no adaptation can change."""


@dataclass
class KeyLedger:
    """What became of every key; each is in exactly one list.

    Attributes:
        mapped: copied as they are.
        interpolated: resampled to another grid of tokens.
        folded: input normalisation taken up into the patch embedding, without loss.
        dropped: of the source, without a place in the target.
        new: of the target, left to their random start.
        notes: changes of the clip that alter no weight but a reader should know.
    """

    mapped: list[str] = field(default_factory=list)
    interpolated: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[str]]:
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """Returns a summary for people: counts per part of the network, and every changed key by name."""
        lines = [f"{'mapped':<13}{len(self.mapped):4d}  {_by_part(self.mapped)}"]
        for kind in ("interpolated", "folded"):
            lines += [f"{kind:<13}      {name}" for name in getattr(self, kind)]
        for kind in ("dropped", "new"):
            names = getattr(self, kind)
            lines.append(f"{kind:<13}{len(names):4d}  {_by_part(names)}")
        lines += [f"{'note':<13}      {note}" for note in self.notes]
        return "\n".join(lines)


def adapt_weights(
    tensors: Mapping[str, Tensor], source: Config, target: Config, left_out: Collection[str] = ()
) -> tuple[dict[str, Tensor], KeyLedger]:
    """Makes weights of `source` fit the model of `target`.

    Stage 1 to 2: the same network; position tables and the token maps of A2V/V2A are resampled where the clip's
    grid changed. Stage 2 to 3: decoders are dropped, pools and heads are new. The critics are never part of it.

    Args:
        left_out: keys that the source file leaves to a random start (its sidecar's `new`).

    Returns:
        the target's tensors without the new ones, and the ledger.

    Raises:
        CheckpointError: the models cannot be reconciled, or a key is unaccounted for; lists everything.
    """
    _check_compatible(source, target)
    source_shapes, target_shapes = _shapes(source), _shapes(target)
    check_keys(source_shapes, {name: tuple(t.shape) for name, t in tensors.items()}, "source weights", left_out)
    ledger = KeyLedger(notes=_changes_to_know(source, target))
    changes = _changes(source, target)
    adapted: dict[str, Tensor] = {}
    for name in target_shapes:
        if name not in tensors:
            ledger.new.append(name)
        elif name in changes.resampled:
            adapted[name] = changes.resampled[name].apply(tensors[name])
            ledger.interpolated.append(f"{name} {list(tensors[name].shape)} -> {list(adapted[name].shape)}")
        else:
            adapted[name] = tensors[name]
            ledger.mapped.append(name)
    if changes.mel_scale_changed:
        _fold_mel(adapted, source, target)
        folded = ["audio_encoder.patch_embed.weight", "audio_encoder.patch_embed.bias"]
        ledger.folded = folded
        ledger.mapped = [name for name in ledger.mapped if name not in folded]
    ledger.dropped = [name for name in tensors if name not in target_shapes]
    _check_accounted(ledger, source, target, left_out)
    check_keys(target_shapes, {name: tuple(t.shape) for name, t in adapted.items()}, "adapted weights", ledger.new)
    return adapted, ledger


# ------------------------------------------------------------------------------------------- what changes


@dataclass(frozen=True)
class _Resample:
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


@dataclass(frozen=True)
class _Changes:
    resampled: dict[str, _Resample]
    mel_scale_changed: bool


def _changes(source: Config, target: Config) -> _Changes:
    old = {"video": video_grid(source.clip, source.model), "audio": audio_grid(source.clip, source.model)}
    new = {"video": video_grid(target.clip, target.model), "audio": audio_grid(target.clip, target.model)}
    resampled: dict[str, _Resample] = {}
    for name in ("video", "audio"):
        if old[name].shape != new[name].shape:
            table = _Resample({1: (old[name].shape, new[name].shape)})
            resampled |= {f"{name}_encoder.position_table": table, f"{name}_decoder.position_table": table}
    for name, given, wanted in (("a2v", "audio", "video"), ("v2a", "video", "audio")):
        resampled |= _cross_modal_changes(name, old[given], new[given], old[wanted], new[wanted])
    mel_scale = (source.clip.mel_mean, source.clip.mel_std) != (target.clip.mel_mean, target.clip.mel_std)
    return _Changes(resampled, mel_scale)


def _cross_modal_changes(
    name: str, given_old: TokenGrid, given_new: TokenGrid, wanted_old: TokenGrid, wanted_new: TokenGrid
) -> dict[str, _Resample]:
    changes: dict[str, _Resample] = {}
    if given_old.num_slices != given_new.num_slices:
        changes[f"{name}.slice_position"] = _Resample({1: ((given_old.num_slices,), (given_new.num_slices,))})
    rows, columns = (wanted_old.slice_shape, wanted_new.slice_shape), (given_old.slice_shape, given_new.slice_shape)
    if rows[0] != rows[1]:
        changes[f"{name}.token_map.bias"] = _Resample({0: rows})
    axes = {axis: grids for axis, grids in enumerate((rows, columns)) if grids[0] != grids[1]}
    if axes:
        changes[f"{name}.token_map.weight"] = _Resample(axes, summed=(1,))
    return changes


def _fold_mel(tensors: dict[str, Tensor], source: Config, target: Config) -> None:
    """Lets the patch embedding read sound normalised by the target's statistics and see what it saw before."""
    scale = target.clip.mel_std / source.clip.mel_std
    shift = (target.clip.mel_mean - source.clip.mel_mean) / source.clip.mel_std
    weight, bias = "audio_encoder.patch_embed.weight", "audio_encoder.patch_embed.bias"
    tensors[bias] = tensors[bias] + tensors[weight].sum(dim=1) * shift
    tensors[weight] = tensors[weight] * scale


# ------------------------------------------------------------------------------------------- checks


def _check_compatible(source: Config, target: Config) -> None:
    problems = [
        f"model.{name} is {getattr(source.model, name)!r} in the source and {getattr(target.model, name)!r} in the target"
        for name in FIXED_FIELDS
        if getattr(source.model, name) != getattr(target.model, name)
    ]
    if source.stage == "finetune" and target.stage == "pretrain":
        problems.append("the source is a finetuned classifier, which has no decoders to pretrain with")
    if (source.stage, target.stage) == ("finetune", "finetune") and source.clip.num_slices != target.clip.num_slices:
        problems.append(
            f"clip.num_slices is {source.clip.num_slices} in the source and {target.clip.num_slices} in the target; "
            "a trained classifier's overall head is tied to it, so start from the pretrained weights"
        )
    if problems:
        raise CheckpointError("these weights cannot be adapted:\n" + "\n".join(f"  {problem}" for problem in problems))


def _check_accounted(ledger: KeyLedger, source: Config, target: Config, left_out: Collection[str]) -> None:
    to_stage_3 = (source.stage, target.stage) == ("pretrain", "finetune")
    may_drop, may_be_new = (DROPPED_AT_STAGE_3, NEW_AT_STAGE_3) if to_stage_3 else ((), ())
    problems = [f"{name} would be dropped" for name in ledger.dropped if not name.startswith(may_drop)]
    problems += [
        f"{name} would be left to a random start"
        for name in ledger.new
        if not name.startswith(may_be_new) and name not in left_out
    ]
    if problems:
        raise CheckpointError(
            f"keys unaccounted for from stage {source.stage} to {target.stage}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = build_model(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _changes_to_know(source: Config, target: Config) -> list[str]:
    """Names what changes without changing a weight: the clip, and what was contrasted."""
    old, new = flatten(source), flatten(target)
    names = [key for key in new if key.startswith("clip.") or key == "pretrain.contrastive_level"]
    return [f"{key} {old[key]} -> {new[key]}" for key in names if old[key] != new[key]]


def _by_part(names: Collection[str]) -> str:
    return ", ".join(f"{part} {count}" for part, count in Counter(name.split(".")[0] for name in names).items())
