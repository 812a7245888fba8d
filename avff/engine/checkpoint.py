"""Checkpoints that are whole or absent, and that any ZeRO stage and number of ranks can load.

A rank writes the fragments it owns by parameter name (avff.engine.fragments), so the files of a checkpoint
together are one canonical state: per parameter fp32 weights, both Adam moments and the moving average. Loading
reads the pieces that overlap a rank's own fragments. This replaces DeepSpeed's files, which load only where
the stage and the number of ranks are the same, or wrongly; hyperparameters follow from the config and the step.

The folder is written under a temporary name, `COMMIT` last, and renamed (avff.run_folder has the layout).
"""

import json
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from avff import distributed, run_folder
from avff.engine import agreement
from avff.engine.fragments import WEIGHTS, Fragment
from avff.engine.trainable import Trainable
from avff.errors import CheckpointError
from avff.files import sha256_of, sync, write_durably
from avff.models.weights import save_weights

logger = logging.getLogger(__name__)


def save(
    run_dir: Path, step: int, trainables: Sequence[Trainable], *, state: dict[str, Any], sidecar: dict[str, Any]
) -> bool:
    """Writes and commits `checkpoints/step-N` on all ranks together.

    A disk error on any rank drops the whole attempt on all of them: training goes on with the older checkpoints.

    Returns:
        whether the checkpoint was committed.
    """
    final = run_folder.checkpoint_dir(run_dir, step)
    unfinished = final.with_name(final.name + ".tmp")
    problems = agreement.problems_of(lambda: _make_folders(unfinished, trainables))
    problems += _write_weights(unfinished, trainables[0], sidecar)
    problems += agreement.problems_of(lambda: _write_fragments(unfinished, trainables))
    if not problems:
        problems = agreement.problems_of(lambda: _commit(unfinished, final, state))
    if problems:
        logger.error("checkpoint step-%d could not be written and was dropped: %s", step, "; ".join(problems))
        if distributed.is_main():
            shutil.rmtree(unfinished, ignore_errors=True)
    distributed.barrier()
    return not problems


def find_newest(run_dir: Path) -> Path | None:
    """Returns the newest checkpoint that is whole on every rank, None when there is none; a collective.

    A damaged checkpoint is renamed to `step-N.damaged`, named in the log, and the one before it is tried.
    """
    for step in agreement.on_main(lambda: _tidy(run_dir))[::-1]:
        directory = run_folder.checkpoint_dir(run_dir, step)
        problems = _find_problems(directory)
        if not problems:
            return directory
        logger.warning("checkpoint step-%d is damaged, falling back to the one before: %s", step, "; ".join(problems))
        agreement.on_main(partial(_set_aside, directory))
    return None


def load(directory: Path, trainables: Sequence[Trainable]) -> None:
    """Restores what `find_newest` found; a collective."""
    agreement.everywhere(partial(_read_fragments, directory, trainables))
    for trainable in trainables:
        trainable.restore(_num_updates(directory / trainable.name))


def _set_aside(directory: Path) -> None:
    damaged = directory.with_name(directory.name + ".damaged")
    if damaged.exists():  # this step was saved again after an earlier fall back
        shutil.rmtree(damaged)
    directory.rename(damaged)


def _tidy(run_dir: Path) -> list[int]:
    """Clears the way for saves after one that was cut off; returns the steps of complete checkpoints."""
    for unfinished in (run_dir / run_folder.CHECKPOINTS).glob("step-*.tmp"):
        shutil.rmtree(unfinished)
    for directory in run_folder.uncommitted_folders(run_dir):
        # Torn by a copy, or by a kill while it was pruned. In its place, this step could never be saved again.
        logger.warning("checkpoint %s has no %s and is set aside", directory.name, run_folder.COMMIT)
        _set_aside(directory)
    return run_folder.committed_steps(run_dir)


def _find_problems(directory: Path) -> list[str]:
    """Verifies on all ranks together, each reading its share of the contents; a collective."""
    rank, world_size = distributed.rank(), distributed.world_size()
    own = run_folder.find_problems(directory, rank=rank, world_size=world_size)
    return list(dict.fromkeys(problem for share in distributed.gather_objects(own) for problem in share))


def prune(run_dir: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints and the best by validation; runs on rank 0 after a commit."""
    if not distributed.is_main():
        return
    steps = run_folder.committed_steps(run_dir)
    kept = {*steps[-keep:], run_folder.best_step(run_dir)}
    for step in steps:
        if step not in kept:
            directory = run_folder.checkpoint_dir(run_dir, step)
            # First it ceases to be a checkpoint, so that a crash inside rmtree leaves no half one behind.
            (directory / run_folder.COMMIT).unlink()
            shutil.rmtree(directory)


# ------------------------------------------------------------------------------------------- writing


def _make_folders(unfinished: Path, trainables: Sequence[Trainable]) -> None:
    if distributed.is_main():
        shutil.rmtree(unfinished, ignore_errors=True)
        for trainable in trainables:
            (unfinished / trainable.name).mkdir(parents=True)


def _write_weights(unfinished: Path, model: Trainable, sidecar: dict[str, Any]) -> list[str]:
    """Writes weights.safetensors and ema.safetensors on rank 0, from all ranks' fragments."""
    problems = []
    names = {WEIGHTS: run_folder.WEIGHTS, "ema": run_folder.EMA}
    if model.optimizer.ema_decay == 0:
        del names["ema"]
    for key, name in names.items():
        tensors = consolidate(model, key)
        about = {**sidecar, "averaged": key == "ema"}

        def write(path: Path = unfinished / name, tensors: dict = tensors, about: dict = about) -> None:
            if distributed.is_main():
                save_weights(path, tensors, about)

        problems += agreement.problems_of(write)
    return problems


def consolidate(model: Trainable, key: str) -> dict[str, Tensor]:
    """Returns the whole module's fp32 tensors on rank 0's CPU (empty elsewhere); a collective."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.gather(key):
        if distributed.is_main():
            tensors[name] = tensor.cpu()
    if distributed.is_main():
        tensors.update(model.persistent_buffers())
    return tensors


def _write_fragments(unfinished: Path, trainables: Sequence[Trainable]) -> None:
    for trainable in trainables:
        if trainable.zero_stage == 0 and not distributed.is_main():
            continue  # replicated: rank 0 writes it
        tensors, starts = {}, {}
        for fragment in trainable.fragments():
            starts[fragment.name] = fragment.start
            for key, view in fragment.tensors.items():
                # A copy of the run alone; the view would drag its whole flat storage along.
                tensors[f"{key}/{fragment.name}"] = view.detach().cpu().clone()
        # One entry: safetensors writes several in random order, and equal states should be equal files.
        about = {"fragments": json.dumps({"num_updates": trainable.num_updates, "starts": starts})}
        path = unfinished / trainable.name / f"rank-{distributed.rank():05d}.safetensors"
        save_file(tensors, path, metadata=about)


def _commit(unfinished: Path, final: Path, state: dict[str, Any]) -> None:
    """Rank 0: makes every file durable, lists it, commits, renames."""
    if not distributed.is_main():
        return
    write_durably(unfinished / run_folder.STATE, (json.dumps(state, indent=1) + "\n").encode())
    listing = {}
    for path in sorted(path for path in unfinished.rglob("*") if path.is_file()):
        sync(path)
        name = path.relative_to(unfinished).as_posix()
        listing[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    for folder in (path for path in unfinished.iterdir() if path.is_dir()):
        sync(folder)
    write_durably(unfinished / run_folder.FILES, (json.dumps(listing, indent=1) + "\n").encode())
    write_durably(unfinished / run_folder.COMMIT, f"{sha256_of(unfinished / run_folder.FILES)}\n".encode())
    unfinished.rename(final)
    sync(final.parent)


# ------------------------------------------------------------------------------------------- reading


def _read_fragments(directory: Path, trainables: Sequence[Trainable]) -> None:
    for trainable in trainables:
        files = [safe_open(path, framework="pt") for path in sorted((directory / trainable.name).glob("*.safetensors"))]
        starts = [_about(file)["starts"] for file in files]
        for fragment in trainable.fragments():
            pieces = [
                (file, start[fragment.name])
                for file, start in zip(files, starts, strict=True)
                if fragment.name in start
            ]
            for key, view in fragment.tensors.items():
                filled = sum(
                    _copy_overlap(file.get_slice(f"{key}/{fragment.name}"), start, fragment, view)
                    for file, start in pieces
                )
                if filled != len(view):
                    raise CheckpointError(
                        f"{directory / trainable.name}: holds {filled} of the {len(view)} values of {key} that parameter "
                        f"{fragment.name} [{fragment.start}, {fragment.stop}) needs; it belongs to another model"
                    )


def _copy_overlap(piece: Any, piece_start: int, fragment: Fragment, view: Tensor) -> int:
    """Copies what a saved run shares with a fragment; returns how many values that were."""
    start = max(fragment.start, piece_start)
    stop = min(fragment.stop, piece_start + piece.get_shape()[0])
    if start >= stop:
        return 0
    with torch.no_grad():
        view[start - fragment.start : stop - fragment.start].copy_(piece[start - piece_start : stop - piece_start])
    return stop - start


def _num_updates(folder: Path) -> int:
    with safe_open(min(folder.glob("*.safetensors")), framework="pt") as file:
        return _about(file)["num_updates"]


def _about(file: Any) -> dict[str, Any]:
    return json.loads(file.metadata()["fragments"])
