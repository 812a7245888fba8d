"""What no adaptation can change, and keys that nobody accounted for: sentences with both values and the way out."""

import difflib
from collections.abc import Mapping

from torch import Tensor

from avff.config import MODEL_SIZES, Config, Modality
from avff.models.importers.source import Conversion
from avff.models.ledger import KeyLedger, join_numbered

MODALITIES: tuple[Modality, Modality] = ("video", "audio")


def encoder_problems(tensors: Mapping[str, Tensor], conversion: Conversion, target: Config) -> list[str]:
    """Returns what no adaptation can change: size of the encoders, patches, LayerNorm epsilon."""
    problems, wanted, model = [], target.model.encoder, target.model
    patches = {
        "video": (model.tubelet_frames, model.patch_size, model.patch_size),
        "audio": (model.mel_patch_frames, model.mel_patch_bins),
    }
    names = {
        "video": "model.tubelet_frames and model.patch_size",
        "audio": "model.mel_patch_frames and .mel_patch_bins",
    }
    for modality in MODALITIES:
        part = f"{modality}_encoder."
        if not has_part(tensors, part):
            continue
        size = (tensors[f"{part}position_table"].shape[-1], num_blocks(tensors, part))
        if size != (wanted.width, wanted.depth):
            problems.append(
                f"its {modality} encoder is {size[0]} wide and {size[1]} blocks deep, model.size={model.size} is "
                f"{wanted.width} x {wanted.depth}{_size_hint(size)}"
            )
        if conversion.patches[modality] != patches[modality]:
            problems.append(
                f"its {modality} patches are {_times(conversion.patches[modality])}, those of {names[modality]} "
                f"{_times(patches[modality])}"
            )
        eps, ours = conversion.layer_norm_eps[modality], model.layer_norm_eps(modality)
        if eps != ours:
            problems.append(eps_problem(f"model.{modality}_layer_norm_eps", eps, ours))
    return problems


def not_finite(tensors: Mapping[str, Tensor], conversion: Conversion) -> list[str]:
    """Says which keys of the source hold NaN or infinite numbers."""
    wrong = [conversion.made_of.get(name, name) for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if not wrong:
        return []
    names = ", ".join(join_numbered(dict.fromkeys(wrong)))
    return [
        f"NaN or infinite numbers in {names}; the weights are spoilt, take an earlier checkpoint or fetch them again"
    ]


def eps_problem(name: str, theirs: float, ours: float) -> str:
    """Says that a LayerNorm epsilon differs and which override mends it."""
    return (
        f"it was trained with a LayerNorm epsilon of {_short(theirs)}, {name} is {_short(ours)}; "
        f"add {name}={_short(theirs)} after --to CONFIG, or to the config"
    )


def unaccounted_keys(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], ledger: KeyLedger
) -> list[str]:
    problems = [f"missing key {name} {list(shapes[name])}" for name, why in ledger.new.items() if not why]
    for name, tensor in tensors.items():
        if name not in shapes:
            near = difflib.get_close_matches(name, shapes, n=2, cutoff=0.6)
            problems.append(f"unexpected key {name}" + (f" (nearest: {', '.join(near)})" if near else ""))
        elif tuple(tensor.shape) != shapes[name]:
            problems.append(f"key {name} has shape {list(tensor.shape)}, the target's is {list(shapes[name])}")
    return problems


def _size_hint(size: tuple[int, int]) -> str:
    known = [name for name, (encoder, _) in MODEL_SIZES.items() if (encoder.width, encoder.depth) == size]
    return f"; add model.size={known[0]} after --to CONFIG, or to the config" if known else ""


def has_part(tensors: Mapping[str, Tensor], part: str) -> bool:
    return any(name.startswith(part) for name in tensors)


def num_blocks(tensors: Mapping[str, Tensor], part: str) -> int:
    blocks = f"{part}stack.blocks."
    return len({name.removeprefix(blocks).split(".")[0] for name in tensors if name.startswith(blocks)})


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _short(value: float) -> str:
    """Writes 1e-05 as 1e-5."""
    return f"{value:g}".replace("e-0", "e-")
