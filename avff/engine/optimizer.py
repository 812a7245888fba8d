"""AdamW that also keeps the moving average of the weights, and the parameter groups it runs on.

The average lives in the optimizer state beside Adam's moments. ZeRO hands an optimizer flat fp32 shards
instead of parameters, so the average is sharded as the moments are and follows the fp32 master weights.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avff.config import OptimConfig
from avff.models.encoder import Encoder
from avff.models.lora import is_lora

STATE_KEYS = ("exp_avg", "exp_avg_sq", "ema")
"""Tensors that `AdamWithEma` keeps per parameter, each of the parameter's shape."""


class AdamWithEma(torch.optim.AdamW):
    """torch's fused AdamW, one pass over memory, whose state also holds `ema`, the moving average of the weights.

    `num_updates` in the state counts as Adam's own `step` does, which lies on the device, where reading it would wait for it.

    Attributes:
        paused: while true, `step` changes nothing. DeepSpeed runs all of its own bookkeeping around
            `step`, so pausing is how an update is skipped alike under every ZeRO stage.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, ema_decay: float):
        super().__init__(groups, betas=betas, eps=eps, fused=True)
        self.ema_decay = ema_decay
        self.paused = False

    def init_state(self, weights: Tensor) -> dict[str, Any]:
        """Returns the state of one parameter or ZeRO shard, made on first use; the average starts at the weights."""
        state = self.state[weights]
        if not state:
            state["step"] = torch.zeros((), device=weights.device)
            state["num_updates"] = 0
            state["exp_avg"] = torch.zeros_like(weights)
            state["exp_avg_sq"] = torch.zeros_like(weights)
            state["ema"] = weights.detach().clone()
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody here passes a closure
        if self.paused:
            return
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        states = [self.init_state(p) for p in weights]
        super().step()
        for state in states:
            state["num_updates"] += 1
        if weights:  # with many ranks, one may own nothing
            shares = [1 - ema_decay_at(state["num_updates"], self.ema_decay) for state in states]
            torch._foreach_lerp_([state["ema"] for state in states], weights, shares)

    @property
    def num_updates(self) -> int:
        """Updates applied so far."""
        return max((state["num_updates"] for state in self.state.values()), default=0)

    def restore(self, num_updates: int) -> None:
        """Continues after so many updates; moments and averages are the caller's to load."""
        for state in self.state.values():
            state["num_updates"] = num_updates
            state["step"].fill_(num_updates)


def ema_decay_at(num_updates: int, decay: float) -> float:
    """Returns the decay of the `num_updates`-th update: short at first, lest early weights weigh for long."""
    return min(decay, (1 + num_updates) / (10 + num_updates))


class Layer(NamedTuple):
    """A part of the network whose parameters learn at one rate.

    Attributes:
        encoder: `video` or `audio`; empty for all that is in no encoder.
        depth: 0 for the embeddings, i for the encoder's i-th block.
        factor: of the learning rate.
    """

    encoder: str = ""
    depth: int = 0
    factor: float = 1.0


class _Place(NamedTuple):
    """What decides which group a parameter belongs to; the groups are in this order."""

    decays: bool
    is_new: bool
    layer: Layer


ELSEWHERE = Layer()


def parameter_groups(
    module: nn.Module, config: OptimConfig, *, learning_rate: float, new_names: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Sorts parameters into decay / no decay x loaded / new x layer, each parameter into exactly one group.

    Args:
        learning_rate: peak of the loaded layers.
        new_names: parameters that no weight file filled; they learn `new_layer_factor` times as fast.

    Returns:
        groups for `AdamWithEma`; `peak_lr` is kept beside `lr`, which the schedule overwrites each step. A name such as
        `decay_video_03` says that `layer_decay` gives this block, of the encoder that `encoder` names, its own rate.
    """
    layers = encoder_layers(module, config.layer_decay)
    names: dict[_Place, list[str]] = {}
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            raise TypeError(f"parameter {name} is frozen; what does not learn has to be a buffer (avff.models.freeze)")
        place = _Place(_decays(name, parameter), name in new_names, layers.get(name, ELSEWHERE))
        names.setdefault(place, []).append(name)
    groups = []
    for place, members in sorted(names.items()):
        peak = learning_rate * (config.new_layer_factor if place.is_new else 1.0) * place.layer.factor
        groups.append(
            {
                "params": [parameters[name] for name in members],
                "name": _group_name(place),
                "encoder": place.layer.encoder,
                "weight_decay": config.weight_decay if place.decays else 0.0,
                "lr": peak,
                "peak_lr": peak,
            }
        )
    return groups


def encoder_layers(module: nn.Module, layer_decay: float) -> dict[str, Layer]:
    """Returns the layer of each parameter that lies in an encoder's blocks or embeddings; of none without a decay.

    Source:
        Bao et al., "BEiT", 2021 (after Clark et al., "ELECTRA", 2020): of N blocks, number i has
        `layer_decay**(N + 1 - i)`, the embeddings have i = 0. The final norm belongs to what follows.
    """
    layers: dict[str, Layer] = {}
    encoders = {part: child for part, child in module.named_children() if isinstance(child, Encoder)}
    for part, encoder in encoders.items() if layer_decay < 1 else ():
        above = len(encoder.stack.blocks) + 1
        for name, _ in encoder.named_parameters():
            depth = _depth(name)
            if depth is not None:
                layers[f"{part}.{name}"] = Layer(part.removesuffix("_encoder"), depth, layer_decay ** (above - depth))
    return layers


def _depth(name: str) -> int | None:
    """Of a parameter of an encoder: 0 for the embeddings, i for the i-th block; None for the norm after them."""
    part, *rest = name.split(".")
    if part != "stack":
        return 0
    return int(rest[1]) + 1 if rest[0] == "blocks" else None


def _group_name(place: _Place) -> str:
    words = ["decay" if place.decays else "no_decay", *(["new"] if place.is_new else [])]
    if place.layer.encoder:
        words += [place.layer.encoder, f"{place.layer.depth:02d}"]
    return "_".join(words)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _decays(name: str, parameter: Tensor) -> bool:
    """Matrices named `weight` and LoRA's decay; biases, norms, tables, embeddings, the temperature and the critics do not."""
    return parameter.ndim > 1 and (name.rsplit(".", 1)[-1] == "weight" or is_lora(name))
