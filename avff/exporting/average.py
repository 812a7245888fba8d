"""Averages of checkpoints: the mean of their weights, one network to run (Wortsman et al., "Model soups", 2022)."""

from collections.abc import Sequence

import torch

from avff.checkpoints import Checkpoint, config_differences, read_checkpoint
from avff.errors import CheckpointError
from avff.exporting.weights import Export, describe_export
from avff.models.ledger import by_part
from avff.run_folder import CheckpointRef


def average_checkpoints(references: Sequence[CheckpointRef]) -> Export:
    """Returns the mean of every tensor, computed in float64.

    No threshold carries over: it was chosen with other weights.

    Raises:
        CheckpointError: fewer than two checkpoints, one of them twice, or networks that differ; lists every difference.
    """
    paths = [reference.weights_path.resolve() for reference in references]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise CheckpointError(
            f"an average takes two or more different checkpoints; given: {', '.join(map(str, paths))}"
        )
    first = read_checkpoint(references[0])
    members = [first._replace(tensors={})]
    sums = {name: tensor.double() for name, tensor in first.tensors.items()}
    for reference in references[1:]:
        member = read_checkpoint(reference)
        _check_same(first, member)
        for name, tensor in member.tensors.items():
            sums[name] += tensor
        members.append(member._replace(tensors={}))
    tensors = {name: (total / len(members)).to(first.tensors[name].dtype) for name, total in sums.items()}
    whats = ", ".join(dict.fromkeys(member.what for member in members))
    return Export(tensors, describe_export(f"mean of {len(members)} checkpoints: {whats}", members, tensors))


def _check_same(one: Checkpoint, other: Checkpoint) -> None:
    differences = config_differences(one.config, other.config)
    problems = [f"{key} {ours!r} against {theirs!r}" for key, ours, theirs in differences]
    if one.build != other.build:
        problems.append(f"build {one.build!r} against {other.build!r}")
    for holder, lacking in ((one, other), (other, one)):
        if names := [name for name in holder.tensors if name not in lacking.tensors]:
            problems.append(f"only {holder.reference.weights_path} holds {by_part(names)} tensors, such as {names[0]}")
    both = one.tensors.keys() & other.tensors.keys()
    unlike = [name for name in one.tensors if name in both and one.tensors[name].dtype != other.tensors[name].dtype]
    if unlike:
        first = unlike[0]
        problems.append(
            f"of another type: {by_part(unlike)} tensors, such as {first}, {one.tensors[first].dtype} against "
            f"{other.tensors[first].dtype}"
        )
    problems += [
        f"{name} is {tensor.dtype}, which has no mean"
        for name, tensor in other.tensors.items()
        if not torch.is_floating_point(tensor)
    ]
    if problems:
        raise CheckpointError(
            f"{one.reference.weights_path} and {other.reference.weights_path} cannot be averaged:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
