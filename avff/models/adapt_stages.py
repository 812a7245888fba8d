"""Our own weights for another stage, clip or model; docs/weights.md has the table of what each change does."""

from collections.abc import Collection, Mapping

from torch import Tensor

from avff.config import Config, Modality
from avff.models.adapt import fit, only_modality, shapes_of
from avff.models.adapt_checks import eps_problem
from avff.models.importers.source import Conversion
from avff.models.ledger import KeyLedger
from avff.models.lora import is_lora, merge_lora
from avff.models.regrid import token_grids
from avff.models.weights import check_keys
from avff.strict_yaml import flatten

NOT_HELD_REASON = "the source file does not hold it"

NOTED_FIELDS = ("pretrain.contrastive_level", "finetune.encoders", "finetune.trained_blocks")
"""Fields besides the clip's that alter no weight and mean something to who goes on from them."""


def adapt_weights(
    tensors: Mapping[str, Tensor],
    source: Config,
    target: Config,
    left_out: Collection[str] = (),
    *,
    only: Modality | None = None,
    fixed_tables: Mapping[str, str] | None = None,
    where: str = "source weights",
) -> tuple[dict[str, Tensor], KeyLedger]:
    """Makes weights of `source` fit the model of `target`.

    Stage 1 to 2: the same network; position tables and the token maps of A2V/V2A are resampled where the clip's
    grid changed. Stage 2 to 3: decoders are dropped, pools and heads are new. What LoRA learnt is added to the weights
    under it. The critics are never part of it.

    Args:
        left_out: keys that the source file does not hold (its sidecar's `new`).
        only: take the encoder of one modality, and its decoder where both stages have one.
        fixed_tables: position tables that can be cut and not resampled -> why.
        where: the file, for messages.

    Returns:
        the target's tensors without the new ones, and the ledger.

    Raises:
        CheckpointError: the models cannot be reconciled, or a key is unaccounted for; lists everything.
    """
    plain, plain_source = merge_lora(tensors, source)
    check_keys(shapes_of(plain_source), {name: tuple(t.shape) for name, t in plain.items()}, where, left_out)
    conversion = Conversion(
        tensors=plain,
        folded=_folded_lora(tensors, source),
        left_out=dict.fromkeys(left_out, NOT_HELD_REASON),
        grids={modality: grid.shape for modality, grid in token_grids(source).items()},
        patches={
            "video": (source.model.tubelet_frames, source.model.patch_size, source.model.patch_size),
            "audio": (source.model.mel_patch_frames, source.model.mel_patch_bins),
        },
        fixed_tables=dict(fixed_tables or {}),
        num_slices=source.clip.num_slices,
        layer_norm_eps={"video": source.model.video_layer_norm_eps, "audio": source.model.audio_layer_norm_eps},
        mel=(source.clip.mel_mean, source.clip.mel_std),
        notes=_changes_to_know(source, target),
    )
    if source.stage == "finetune":
        conversion.left_out |= {f"{name}_decoder.": "a classifier has no decoders" for name in ("video", "audio")}
    if only:
        return fit(only_modality(conversion, only, where), where, target)
    return fit(conversion, where, target, known_problems=_problems(source, target))


def _folded_lora(tensors: Mapping[str, Tensor], source: Config) -> dict[str, str]:
    words = f"LoRA of rank {source.finetune.lora_rank} and alpha {source.finetune.lora_alpha:g}"
    return {name.rpartition(".")[0] + ".weight": words for name in tensors if is_lora(name)}


def _problems(source: Config, target: Config) -> list[str]:
    """Returns why the parts besides encoders and decoders cannot carry over."""
    problems = []
    eps, ours = source.model.fusion_layer_norm_eps, target.model.fusion_layer_norm_eps
    if eps != ours:
        problems.append(eps_problem("model.fusion_layer_norm_eps", eps, ours))
    if source.stage == "finetune" and target.stage == "pretrain":
        problems.append(
            "it is a finetuned classifier, which has no decoders to pretrain with; video= or audio= before the file "
            "takes its encoders alone"
        )
    if (source.stage, target.stage) == ("finetune", "finetune"):
        problems += _tied_heads(source, target)
    return problems


def _tied_heads(source: Config, target: Config) -> list[str]:
    """Returns what a trained classifier's pools and heads cannot follow."""
    old, new = source.model.decoder.width, target.model.decoder.width
    problems = []
    if old != new:
        problems.append(
            f"its pools and heads are {old} wide, model.decoder_size makes them {new}; keep that, or start from the "
            "pretrained weights"
        )
    if source.clip.num_slices != target.clip.num_slices:
        problems.append(
            f"clip.num_slices is {source.clip.num_slices} in the source and {target.clip.num_slices} in the target; "
            "a trained classifier's overall head is tied to it, so start from the pretrained weights"
        )
    return problems


def _changes_to_know(source: Config, target: Config) -> list[str]:
    """Names what changes without changing a weight: the clip, and what was contrasted."""
    old, new = flatten(source), flatten(target)
    names = [key for key in new if key.startswith("clip.") or key in NOTED_FIELDS]
    return [f"{key} {old[key]} -> {new[key]}" for key in names if old[key] != new[key]]
