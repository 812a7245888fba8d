"""Where DeepSpeed keeps each parameter's fp32 state, as views by parameter name.

Under ZeRO a rank owns a run `[start, stop)` of some flattened parameters: a fragment. Its weights and Adam
state are views into flat shards that DeepSpeed's own accessors reach only for some stages (they fail for
stage 0, for fp32 stage 1, and where sizes do not divide by the ranks). With views by name, reading, saving
and loading are the same few lines for every stage and any number of ranks.

The only file that reads DeepSpeed's internals; written against 0.19.8 and held by tests/engine/test_zero.py.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from avff import distributed
from avff.engine.optimizer import STATE_KEYS, AdamWithEma

WEIGHTS = "weights"
KEYS = (WEIGHTS, *STATE_KEYS)


class Fragment(NamedTuple):
    """What this rank owns of one parameter.

    Attributes:
        name: parameter name in the module.
        start, stop: run of the flattened parameter.
        tensors: `weights`, `exp_avg`, `exp_avg_sq`, `ema`: 1-D views of that run; writing to them sets the state.
    """

    name: str
    start: int
    stop: int
    tensors: dict[str, Tensor]


class _Location(NamedTuple):
    master: Tensor
    offset: int
    start: int
    stop: int


def shape_of(parameter: Tensor) -> torch.Size:
    """Full shape; ZeRO-3 leaves an empty tensor in the module."""
    return getattr(parameter, "ds_shape", parameter.shape)


def fragments(engine: Any, optimizer: AdamWithEma) -> Iterator[Fragment]:
    """Yields this rank's fragments in the module's order; parameters it owns nothing of are left out."""
    for name, parameter in engine.module.named_parameters():
        location = _locate(engine, parameter)
        if location is not None:
            state = optimizer.init_state(location.master)
            count = location.stop - location.start
            flat = {WEIGHTS: location.master.detach(), **{key: state[key] for key in STATE_KEYS}}
            views = {key: tensor.view(-1).narrow(0, location.offset, count) for key, tensor in flat.items()}
            yield Fragment(name, location.start, location.stop, views)


def _locate(engine: Any, parameter: Any) -> _Location | None:
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return _Location(parameter, 0, 0, parameter.numel())
    zero = engine.optimizer
    if stage == 3:
        group, offset, count = zero.grad_position[zero.get_param_id(parameter)]
        start = count * distributed.rank()
        stop = min(start + count, parameter.ds_numel)
        return _Location(zero.fp32_partitioned_groups_flat[group], offset, start, stop) if start < stop else None
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    start, offset = mapping.lp_fragment_address.start, mapping.hp_fragment_address.start
    stop = start + mapping.lp_fragment_address.numel
    return _Location(zero.single_partition_of_fp32_groups[mapping.param_group_index], offset, start, stop)


def gather(engine: Any, optimizer: AdamWithEma, key: str) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, full fp32 tensor on the device) on every rank, one parameter at a time; a collective."""
    owned = {fragment.name: fragment for fragment in fragments(engine, optimizer)}
    for name, parameter in engine.module.named_parameters():
        shape = shape_of(parameter)
        full = torch.zeros(shape.numel(), device=parameter.device)
        if name in owned:
            full[owned[name].start : owned[name].stop] = owned[name].tensors[key]
        if engine.zero_optimization_stage() > 0 and distributed.world_size() > 1:
            dist.all_reduce(full)
        yield name, full.view(shape)


def publish_weights(engine: Any) -> None:
    """Copies fp32 weights that were written through fragments to where the forward pass reads them; a collective."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            zero._unflatten_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def gradient_square_sum(engine: Any) -> Tensor:
    """Returns this rank's share of the squared gradient norm after the last backward pass of an update.

    float64 on the device, NaN or infinite where a gradient is. The sum over ranks is the squared norm.
    """
    if engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        share = 1 / distributed.world_size()  # replicated: every rank holds all of it
    else:
        gradients = [g for group in engine.optimizer.averaged_gradients.values() for g in group or () if g is not None]
        share = 1.0
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for norm in torch._foreach_norm(gradients) if gradients else ():
        total += norm.double() ** 2
    return total * share
