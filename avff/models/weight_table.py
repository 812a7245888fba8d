"""What a weight file holds, as a table for people."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avff.errors import CheckpointError
from avff.files import sha256_of
from avff.models.adapt_files import is_own
from avff.models.importers.reading import read_with_notes
from avff.models.importers.registry import recognise, source_named
from avff.models.ledger import join_numbered
from avff.models.weights import load_weights
from avff.sidecar import config_of

SHAPES_SHOWN = 3
"""Largest tensors of a part whose shapes are shown."""


def describe_file(path: Path, format_name: str = "", *, every_key: bool = False) -> str:
    """Returns what a file is and holds: where it comes from, its licence, and its keys part by part.

    Args:
        format_name: the `Source` to take it for; empty finds out. A file of no known source is shown all the same.
        every_key: also list each key with its shape.

    Raises:
        CheckpointError: it cannot be read.
    """
    if is_own(path) and not format_name:
        tensors, sidecar = load_weights(path)
        facts = list(_own_facts(sidecar, path))
    else:
        tensors, notes = read_with_notes(path)
        facts = [*_published_facts(tensors, path, format_name), *(("note", note) for note in notes)]
    size = path.stat().st_size
    total = sum(tensor.numel() for tensor in tensors.values())
    facts.insert(0, ("file", f"{path}, {size:,} bytes, sha256 {sha256_of(path)}"))
    facts.append(("holds", f"{total:,} numbers under {len(tensors)} keys"))
    lines = [f"{name:<11} {value}" for name, value in facts]
    lines += ["", *_table(tensors)]
    if every_key:
        lines += ["", *(f"{name} {list(t.shape)} {_dtype(t)}" for name, t in tensors.items())]
    return "\n".join(lines)


def _published_facts(tensors: Mapping[str, Tensor], path: Path, format_name: str) -> Iterator[tuple[str, str]]:
    try:
        source = source_named(format_name) if format_name else recognise(tensors, path)
    except CheckpointError as error:
        yield "source", f"not recognised: {error}"
        return
    yield "source", f"{source.name}: {source.title}"
    yield "licence", f"{source.licence}{', not for commercial use' if source.non_commercial else ''}"
    yield "published", source.url


def _own_facts(sidecar: dict[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    config = config_of(sidecar, path)
    clip, model = config.clip, config.model
    yield "source", f"avff, {config.stage} {config.name}: {sidecar.get('what', '')}"
    yield (
        "clip",
        f"{clip.num_frames} frames of {clip.image_size} px at {clip.frames_per_second:g} per second, "
        f"{clip.num_mel_frames} x {clip.num_mel_bins} log-mel, {clip.num_slices} slices",
    )
    yield (
        "model",
        f"{model.size}, decoders {model.decoder_size or model.size}, LayerNorm epsilon {model.video_layer_norm_eps:g} "
        f"video, {model.audio_layer_norm_eps:g} audio, {model.fusion_layer_norm_eps:g} fusion",
    )
    if sidecar.get("step") is not None:
        yield "step", f"{sidecar['step']:,}"
    if new := sidecar.get("new"):
        yield "left out", f"{len(new)} keys start at random: {', '.join(dict.fromkeys(n.split('.')[0] for n in new))}"
    yield (
        "licences",
        ", ".join(sidecar.get("licences", [])) + (", not for commercial use" if sidecar.get("non_commercial") else ""),
    )
    yield from _ancestors(sidecar, "")
    for record in sidecar.get("trained_on", []):
        clips = f", {record['num_samples']:,} clips" if "num_samples" in record else ", not recorded on what"
        yield "trained on", f"{record['path']}{clips}"


def _ancestors(about: dict[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for parent in about.get("parents", []):
        licences = ", ".join(parent.get("licences", []))
        yield "made from", f"{indent}{parent['file']} ({parent['what']}), {licences}, sha256 {parent['sha256'][:12]}"
        yield from _ancestors(parent, indent + "  ")


# ------------------------------------------------------------------------------------------- part by part


def _table(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    parts: dict[str, list[str]] = {}
    for name in tensors:
        parts.setdefault(_part(name), []).append(name)
    rows = [("part", "keys", "numbers", "type", "largest")]
    for part, names in parts.items():
        numbers = f"{sum(tensors[name].numel() for name in names):,}"
        types = ", ".join(sorted({_dtype(tensors[name]) for name in names}))
        title = join_numbered(names)[0] if len(names) == 1 else _title(part, names)
        rows.append((title, str(len(names)), numbers, types, _largest(tensors, part, names)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for part, keys, numbers, types, largest in rows:
        yield f"{part:<{widths[0]}}  {keys:>{widths[1]}}  {numbers:>{widths[2]}}  {types:<{widths[3]}}  {largest}"


def _part(name: str) -> str:
    """Returns the module that a key is counted under: a list of numbered blocks, or the outermost module."""
    numbered = re.match(r"(.+?)\.\d+\.", name)
    if numbered:
        return f"{numbered[1]}.N"
    return name.split(".")[0] if "." in name else ""


def _title(part: str, names: list[str]) -> str:
    if not part.endswith(".N"):
        return part or "(top level)"
    beginnings = dict.fromkeys(re.match(r".+?\.\d+\.", name)[0] for name in names)  # type: ignore[index]
    return join_numbered(beginnings)[0].rstrip(".")


def _largest(tensors: Mapping[str, Tensor], part: str, names: list[str]) -> str:
    """Shapes of the largest tensors; of numbered blocks, those of the first that has them."""
    shown: dict[str, Tensor] = {}
    for name in sorted(names, key=lambda name: -tensors[name].numel()):
        short = re.sub(rf"^{re.escape(part.removesuffix('.N'))}\.(\d+\.)?", "", name) if part else name
        shown.setdefault(short, tensors[name])
    return ", ".join(f"{short} {list(tensor.shape)}" for short, tensor in list(shown.items())[:SHAPES_SHOWN])


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
