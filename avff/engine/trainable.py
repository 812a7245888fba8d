"""One module under DeepSpeed: `model` and `critics` are one `Trainable` each."""

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from avff import distributed
from avff.config import Config
from avff.engine import fragments
from avff.engine.deepspeed_config import deepspeed_config, gathers_whole_blocks
from avff.engine.optimizer import AdamWithEma, parameter_groups, set_learning_rates
from avff.models.freeze import frozen_names
from avff.models.transformer import Block


class Trainable:
    """A module, its DeepSpeed engine and its optimizer.

    Calling it is the forward pass. `backward` and `step` are called once per micro batch, in this order;
    only the last `step` of an update changes weights.

    Attributes:
        name: `model` or `critics`; the folder in a checkpoint.
        engine: the DeepSpeed engine.
        optimizer: ours, which the engine runs on its fp32 shards.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        config: Config,
        *,
        zero_stage: int,
        learning_rate: float,
        new_names: Collection[str] = (),
    ):
        import deepspeed  # chooses its accelerator on import: only after avff.engine.process.start

        self.name = name
        if zero_stage == 3 and gathers_whole_blocks(config):
            # Blocks are gathered whole: fewer, larger messages, and no hook inside what is compiled.
            deepspeed.utils.set_z3_leaf_modules(module, [Block], raise_if_not_found=False)
        groups = parameter_groups(module, config.optim, learning_rate=learning_rate, new_names=new_names)
        self.optimizer = AdamWithEma(
            groups, betas=config.optim.betas, eps=config.optim.eps, ema_decay=config.optim.ema_decay
        )
        self.engine: Any = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config=deepspeed_config(config, world_size=distributed.world_size(), zero_stage=zero_stage),
        )[0]
        if zero_stage == 0 and distributed.world_size() == 1:
            # There is nothing to reduce; DeepSpeed would copy all gradients into one buffer and back.
            self.engine.enable_backward_allreduce = False
        for _ in self.fragments():
            pass  # makes the optimizer state now, so that a checkpoint before the first update is complete

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    @property
    def zero_stage(self) -> int:
        return self.engine.zero_optimization_stage()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Adds this micro batch's share of the gradient; the last one of an update averages over ranks."""
        self.engine.backward(loss)

    def gradient_square_sum(self) -> Tensor:
        return fragments.gradient_square_sum(self.engine)

    def step(self, *, learning_rate_factor: float = 0.0, skip: bool = False) -> None:
        """Ends a micro batch; at the end of an update changes the weights, unless told to skip.

        A skipped update runs all of DeepSpeed's bookkeeping and leaves weights, moments and average as they were.
        """
        set_learning_rates(self.optimizer, learning_rate_factor)
        self.optimizer.paused = skip
        self.engine.step()
        self.optimizer.paused = False

    def learning_rates(self) -> dict[str, float]:
        """Returns each group's rate; of an encoder whose layers have their own, the lowest and the highest."""
        rates: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            rate, encoder = group["lr"], group["encoder"]
            if encoder:
                low, high = f"{encoder}_lowest", f"{encoder}_highest"
                rates[low], rates[high] = min(rate, rates.get(low, rate)), max(rate, rates.get(high, rate))
            else:
                rates[group["name"]] = rate
        return rates

    def fragments(self) -> Iterator[fragments.Fragment]:
        return fragments.fragments(self.engine, self.optimizer)

    def gather(self, key: str) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, full tensor) of `weights`, `ema` or a moment on every rank, one at a time; a collective."""
        return fragments.gather(self.engine, self.optimizer, key)

    def persistent_buffers(self) -> dict[str, Tensor]:
        """Returns what the module's state holds besides parameters, such as what is frozen; on the device."""
        state = self.module.state_dict()
        return {name: state[name] for name in sorted(frozen_names(self.module))}

    @property
    def num_updates(self) -> int:
        """Updates applied so far, skipped ones not counted."""
        return self.optimizer.num_updates

    def restore(self, num_updates: int) -> None:
        """Ends a load: sets Adam's step and hands the loaded weights to the forward pass; a collective."""
        self.optimizer.restore(num_updates)
        fragments.publish_weights(self.engine)
