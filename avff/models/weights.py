"""Weight files: `.safetensors` with a JSON sidecar of the same name, the only format that stages exchange."""

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from avff import __version__
from avff.config import Config
from avff.errors import CheckpointError
from avff.files import durable, sha256_of
from avff.models.lora import is_lora
from avff.sidecar import config_of, read_sidecar
from avff.strict_yaml import flatten, to_dict

OWN_LICENCE = "Apache-2.0"
"""Of weights that were trained here from scratch; data sets may add terms of their own."""

FAKE_PROBABILITY = "sigmoid of the overall head's logit: the chance that the clip is fake in picture, sound or both"

NOT_IN_WEIGHTS = ("model.drop_path", "model.activation_checkpointing", "model.critic_width")
"""Config fields of the clip and model sections that change no weight's shape or meaning."""


# ------------------------------------------------------------------------------------------- sidecar


def make_sidecar(
    what: str, config: Config, *, parents: Collection[Mapping[str, Any]] = (), build: Any = None, **extra: Any
) -> dict[str, Any]:
    """Returns what a reader must know about a weight file.

    Args:
        what: one line for people.
        config: that the weights belong to.
        parents: of the weights that these were made from, as `parent_of` describes them.
        build: how the training clips were made from raw media (BuildConfig as a dict), None where unknown.
    """
    clip = config.clip
    return {
        "what": what,
        "config": to_dict(config),
        "parents": list(parents),
        "licences": sorted({OWN_LICENCE}.union(*(parent["licences"] for parent in parents))),
        "non_commercial": any(parent.get("non_commercial", False) for parent in parents),
        "input": {
            "video": "RGB in [0, 1], minus ImageNet mean, over ImageNet standard deviation",
            "audio": f"natural log of mel power, minus {clip.mel_mean}, over {clip.mel_std}; time first",
        },
        "fake_probability": FAKE_PROBABILITY if config.stage == "finetune" else None,
        "build": build,
        "avff_version": __version__,
        **extra,
    }


def parent_of(path: Path) -> dict[str, Any]:
    """Describes a weight file as the parent of another one."""
    sidecar = read_sidecar(path)
    fixed_tables = sidecar.get("ledger", {}).get("fixed_tables", {})
    return {
        "file": path.name,
        "what": sidecar.get("what", ""),
        "sha256": sha256_of(path),
        "licences": sidecar.get("licences", [OWN_LICENCE]),
        "non_commercial": sidecar.get("non_commercial", False),
        "parents": sidecar.get("parents", []),
        **({"fixed_tables": fixed_tables} if fixed_tables else {}),
    }


# ------------------------------------------------------------------------------------------- files


def save_weights(path: Path, tensors: Mapping[str, Tensor], sidecar: Mapping[str, Any]) -> None:
    """Writes `path` (.safetensors) and its sidecar; each appears whole or not at all, the weights last.

    Raises:
        OSError: one of them could not be written, such as on a full disk; then neither was replaced.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a weight file's name ends in .safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sidecar), indent=2, sort_keys=False) + "\n"
    # Both are written before either is renamed.
    with durable(path) as new_weights, durable(path.with_suffix(".json")) as new_sidecar:
        save_tensors(new_weights, tensors)
        new_sidecar.write_text(text)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Writes a bare .safetensors file; equal tensors give equal files as long as `about` has one entry at most.

    Raises:
        OSError: what the library calls a SafetensorError; writing fails for reasons of the disk alone.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        # Unlike `save`, it lets other threads run and needs no second copy in memory.
        safetensors.torch.save_file(whole, path, metadata=dict(about) if about else None)
        path.chmod(mode)  # the library lets nobody but the owner read it, whatever the umask
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a weight file and its sidecar.

    Raises:
        CheckpointError: a file is missing or is not what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    sidecar = read_sidecar(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole .safetensors file: {error}") from error
    return tensors, sidecar


# ------------------------------------------------------------------------------------------- into a model


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str, new: Collection[str] = ()) -> None:
    """Copies tensors into a module, strictly.

    Args:
        where: file named in every message.
        new: parameters that the file leaves out on purpose; they keep their initial values.

    Raises:
        CheckpointError: lists every missing, extra and misshapen key, with the nearest expected names.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_keys(expected, found, where, new)
    module.load_state_dict(dict(tensors), strict=False)


def check_keys(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str, new: Collection[str] = ()
) -> None:
    """Compares names and shapes of two sets of weights; raises CheckpointError with every difference."""
    problems = [f"missing key {name} {list(expected[name])}" for name in expected if name not in {*found, *new}]
    for name in found:
        if name not in expected:
            near = difflib.get_close_matches(name, expected, n=2, cutoff=0.6)
            problems.append(f"unexpected key {name}" + (f" (nearest: {', '.join(near)})" if near else ""))
        elif found[name] != expected[name]:
            problems.append(f"key {name} has shape {list(found[name])}, the model's is {list(expected[name])}")
    if problems:
        raise CheckpointError("\n".join(f"{where}: {problem}" for problem in problems))


def load_initial_weights(module: nn.Module, path: Path, config: Config) -> list[str]:
    """Starts a run from a weight file (`engine.init_weights`).

    Returns:
        names of the parameters that the file leaves to their random start, such as a classifier's heads; they may
        learn faster (`optim.new_layer_factor`).

    Raises:
        CheckpointError: the file was made for other clips or another model, or its keys are not the model's.
    """
    path = Path(path)
    tensors, sidecar = load_weights(path)
    if "config" in sidecar:
        _check_same_model(config_of(sidecar, path), config, path, holds_lora=any(map(is_lora, tensors)))
    expected = module.state_dict().keys()
    # LoRA's changes of weights are new to every file but those of a network that has them.
    lora = {name for name in expected if is_lora(name)} - tensors.keys()
    new = sorted(lora.union(sidecar.get("new", [])) & expected)
    load_into(module, tensors, str(path), new)
    return new


def _check_same_model(made_for: Config, config: Config, path: Path, *, holds_lora: bool) -> None:
    theirs, ours = (_model_facts(one, holds_lora=holds_lora) for one in (made_for, config))
    differing = [f"{key} {theirs[key]!r} -> {ours[key]!r}" for key in ours if theirs[key] != ours[key]]
    if differing:
        raise CheckpointError(
            f"{path}: made for another config ({'; '.join(differing)}); run tools/adapt_weights.py with --to this config"
        )


def _model_facts(config: Config, *, holds_lora: bool) -> dict[str, Any]:
    """Returns every config value that gives weights their shape or meaning.

    Args:
        holds_lora: whether the weights include LoRA's; without them, a network with LoRA starts as the one without.
    """
    sections = ("clip.", "model.", "finetune.lora_") if holds_lora else ("clip.", "model.")
    facts = {key: value for key, value in flatten(config).items() if key.startswith(sections)}
    facts = {key: value for key, value in facts.items() if key not in NOT_IN_WEIGHTS}
    if holds_lora:
        facts["finetune.encoders"] = config.finetune.encoders
    return {"stage": config.stage, **facts, "model.decoder_size": config.model.decoder_size or config.model.size}
