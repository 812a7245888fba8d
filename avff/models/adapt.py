"""Weights made fit for the networks of a config, with every key accounted for on both sides.

All sources take this way: published checkpoints as an importer hands them over, and our own weights of another stage
or another clip (avff.models.adapt_stages).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from avff.config import Config, Modality
from avff.errors import CheckpointError
from avff.models.adapt_checks import MODALITIES, encoder_problems, has_part, not_finite, num_blocks, unaccounted_keys
from avff.models.adapt_tables import fit_tables
from avff.models.build import build_model
from avff.models.importers.source import Conversion, Source
from avff.models.ledger import KeyLedger, by_part
from avff.models.lora import is_lora

STAGE_3_PARTS = ("video_pool.", "audio_pool.", "video_head.", "audio_head.", "overall_head.")
SHARED_PARTS = ("a2v.", "v2a.", "temperature.")
STAGE_3_REASON = "stage 3's own part"
NO_DECODERS_REASON = "stage 3 has no decoders"
MEL_EMBEDDING = ("audio_encoder.patch_embed.weight", "audio_encoder.patch_embed.bias")


class Adapted(NamedTuple):
    """What one file gives to a model.

    Attributes:
        where: the file, for messages.
        tensors: of the target, as far as the file fills them.
        ledger: of all keys of the file and of the target.
    """

    where: str
    tensors: dict[str, Tensor]
    ledger: KeyLedger


# ------------------------------------------------------------------------------------------- one source


def adapt_conversion(
    conversion: Conversion, source: Source, target: Config, *, where: str = "", file_keys: Collection[str] = ()
) -> tuple[dict[str, Tensor], KeyLedger]:
    """Makes what an importer read fit the model of `target`.

    Position tables are resampled where the clip has another grid, log-mel statistics folded into the patch embedding,
    decoders of another size than the target's left out.

    Args:
        where: the file, for messages; empty: the source's name.
        file_keys: all keys of the file, so that what has no place is dropped under its own name.

    Returns:
        the target's tensors without the new ones, and the ledger.

    Raises:
        CheckpointError: encoder size, patches or LayerNorm epsilon differ, or a key is unaccounted for; lists
            everything, with the overrides that would make it fit.
    """
    return fit(conversion, where or source.name, target, file_keys=file_keys)


def fit(
    conversion: Conversion,
    where: str,
    target: Config,
    *,
    file_keys: Collection[str] = (),
    known_problems: Sequence[str] = (),
) -> tuple[dict[str, Tensor], KeyLedger]:
    """Does what `adapt_conversion` says, for any weights under our names.

    Args:
        known_problems: what the caller already found wrong, to be told together with the rest.
    """
    shapes, unwanted = shapes_of(target), _unwanted_decoders(conversion, target)
    tensors = {name: tensor for name, tensor in conversion.tensors.items() if not _reason(name, unwanted)}
    ledger = KeyLedger(notes=list(conversion.notes))
    dropped = {name: _reason(name, unwanted) for name in conversion.tensors if name not in tensors}
    ledger.dropped = conversion.dropped | _source_keys(dropped, conversion, file_keys)
    problems = [*known_problems, *encoder_problems(tensors, conversion, target), *not_finite(tensors, conversion)]
    if not problems:
        tensors, problems = fit_tables(tensors, conversion, target, ledger)
    if not problems:
        _fold_mel(tensors, conversion, target, ledger)
        _record_the_rest(tensors, conversion, ledger)
        left_out = unwanted | _stage_3_parts(tensors) | conversion.left_out
        ledger.new = {name: _why_new(name, left_out) for name in shapes if name not in tensors}
        problems = unaccounted_keys(tensors, shapes, ledger)
    if problems:
        raise CheckpointError("\n".join(f"{where}: {problem}" for problem in problems))
    return tensors, ledger


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of a config's model, critics aside."""
    with torch.device("meta"):
        model = build_model(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def only_modality(
    conversion: Conversion, modality: Modality, where: str, file_keys: Collection[str] = ()
) -> Conversion:
    """Returns the encoder and decoder of one modality, the rest being dropped because nobody asked for it.

    Args:
        where, file_keys: as for `adapt_conversion`.

    Raises:
        CheckpointError: the conversion holds no such encoder.
    """
    parts = (f"{modality}_encoder.", f"{modality}_decoder.")
    reason = f"only {modality} is asked for"
    if not any(name.startswith(parts[0]) for name in conversion.tensors):
        why = _reason(parts[0], conversion.left_out)
        raise CheckpointError(f"{where}: holds no {modality} encoder" + (f": {why}" if why else ""))
    kept = {name: tensor for name, tensor in conversion.tensors.items() if name.startswith(parts)}
    # What both modalities were made of, such as a block they share, is not dropped.
    used = {conversion.made_of[name] for name in kept if name in conversion.made_of}
    others = {
        name: reason for name in conversion.tensors if name not in kept and conversion.made_of.get(name) not in used
    }
    return Conversion(
        tensors=kept,
        made_of=conversion.made_of,
        filled={name: why for name, why in conversion.filled.items() if name in kept},
        folded={name: why for name, why in conversion.folded.items() if name in kept},
        dropped=conversion.dropped | _source_keys(others, conversion, file_keys),
        left_out=conversion.left_out | dict.fromkeys(_other_parts(parts), f"{reason} of this file"),
        grids={modality: conversion.grids[modality]},
        fixed_tables=conversion.fixed_tables,
        patches=conversion.patches,
        layer_norm_eps={modality: conversion.layer_norm_eps[modality]},
        mel=conversion.mel if modality == "audio" else None,
        notes=conversion.notes,
    )


def _other_parts(wanted: tuple[str, str]) -> list[str]:
    names = ("video_encoder.", "audio_encoder.", "video_decoder.", "audio_decoder.", *SHARED_PARTS, *STAGE_3_PARTS)
    return [name for name in names if name not in wanted]


# ------------------------------------------------------------------------------------------- several sources


def merge(parts: Sequence[Adapted]) -> tuple[dict[str, Tensor], KeyLedger]:
    """Joins what several files give to one model.

    Raises:
        CheckpointError: two of them fill the same key; says how to choose.
    """
    if len(parts) == 1:
        return parts[0].tensors, parts[0].ledger
    _check_disjoint(parts)
    merged = KeyLedger()
    tensors: dict[str, Tensor] = {}
    for path, some, ledger in parts:
        # Folders of this machine say nothing to who reads the sidecar elsewhere.
        where = Path(path).name
        tensors |= some
        merged.mapped += ledger.mapped
        merged.made_of |= {name: f"{where}: {theirs}" for name, theirs in ledger.made_of.items()}
        merged.interpolated |= ledger.interpolated
        merged.folded |= ledger.folded
        merged.filled |= ledger.filled
        merged.fixed_tables |= ledger.fixed_tables
        merged.dropped |= {f"{where}: {key}": f"{where}: {why}" for key, why in ledger.dropped.items()}
        merged.notes += [f"{where}: {note}" for note in ledger.notes]
    for name in parts[0].ledger.new:
        if name not in tensors:
            merged.new[name] = "; ".join(dict.fromkeys(part.ledger.new[name] for part in parts))
    return tensors, merged


def _check_disjoint(parts: Sequence[Adapted]) -> None:
    problems = []
    for index, one in enumerate(parts):
        for other in parts[index + 1 :]:
            both = [name for name in one.tensors if name in other.tensors]
            if both:
                problems.append(f"{one.where} and {other.where} both fill {by_part(both)}, such as {both[0]}")
    if problems:
        names = [part.where for part in parts]
        raise CheckpointError(
            "\n".join(problems)
            + f"\ntake one modality of each: --from video={names[0]} --from audio={names[1]}, or leave one of them out"
        )


# ------------------------------------------------------------------------------------------- what has no place


def _unwanted_decoders(conversion: Conversion, target: Config) -> dict[str, str]:
    """Returns beginnings of names that the source may fill and the target cannot take -> why."""
    unwanted = {}
    for modality in MODALITIES:
        part = f"{modality}_decoder."
        if target.stage == "finetune":
            unwanted[part] = NO_DECODERS_REASON
        elif reason := _other_decoder(conversion.tensors, part, target):
            unwanted[part] = reason
    return unwanted


def _stage_3_parts(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {part: STAGE_3_REASON for part in STAGE_3_PARTS if not has_part(tensors, part)}


def _other_decoder(tensors: Mapping[str, Tensor], part: str, target: Config) -> str:
    """Says why the source's decoder is not the target's; empty where it is, or there is none."""
    if not has_part(tensors, part):
        return ""
    width, depth = tensors[f"{part}embed.weight"].shape[0], num_blocks(tensors, part)
    wanted = target.model.decoder
    if (width, depth) == (wanted.width, wanted.depth):
        return ""
    named = target.model.decoder_size or target.model.size
    return f"it is {width} wide and {depth} blocks deep, model.decoder_size {named} is {wanted.width} x {wanted.depth}"


def _why_new(name: str, left_out: Mapping[str, str]) -> str:
    return "LoRA, which changes nothing at first" if is_lora(name) else _reason(name, left_out)


def _source_keys(reasons: Mapping[str, str], conversion: Conversion, file_keys: Collection[str]) -> dict[str, str]:
    """Returns reasons by the source's names; a constant that stands for nothing in the source is not one of them."""
    found: dict[str, str] = {}
    for name, why in reasons.items():
        if name not in conversion.filled:
            made_of = conversion.made_of.get(name, name)
            # Words about how it was made stand among the keys that it was made of.
            keys = [word for word in re.split(r"[,\s\[]+", made_of) if word in file_keys]
            found |= dict.fromkeys(keys or [made_of], why)
    return found


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    """Returns the reason of a name or of a beginning of it that ends in a dot; the empty one begins all names."""
    found = (
        why for key, why in reasons.items() if name == key or ((not key or key.endswith(".")) and name.startswith(key))
    )
    return next(found, "")


# ------------------------------------------------------------------------------------------- what changes


def _fold_mel(tensors: dict[str, Tensor], conversion: Conversion, target: Config, ledger: KeyLedger) -> None:
    """Lets the patch embedding read sound normalised by the target's statistics and see what it saw before."""
    weight, bias = MEL_EMBEDDING
    if conversion.mel is None or weight not in tensors:
        return
    (old_mean, old_std), (mean, std) = conversion.mel, (target.clip.mel_mean, target.clip.mel_std)
    if (old_mean, old_std) == (mean, std):
        return
    tensors[bias] = tensors[bias] + tensors[weight].sum(dim=1) * ((mean - old_mean) / old_std)
    tensors[weight] = tensors[weight] * (std / old_std)
    words = f"log-mel mean {old_mean:g} and deviation {old_std:g} -> {mean:g} and {std:g}"
    ledger.folded |= dict.fromkeys(MEL_EMBEDDING, words)


def _record_the_rest(tensors: Mapping[str, Tensor], conversion: Conversion, ledger: KeyLedger) -> None:
    for name in tensors:
        if made_of := conversion.made_of.get(name):
            ledger.made_of[name] = made_of
        if name in ledger.interpolated:
            continue
        if name in conversion.folded:
            here = [ledger.folded[name]] if name in ledger.folded else []
            ledger.folded[name] = ", then ".join([conversion.folded[name], *here])
        elif name in conversion.filled and name not in ledger.folded:
            ledger.filled[name] = conversion.filled[name]
        elif name not in ledger.folded:
            ledger.mapped.append(name)
