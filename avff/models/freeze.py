"""Parts of a network that do not learn: their parameters become buffers of the same names.

A parameter with `requires_grad` off would still be sharded, averaged and saved by what trains it. A buffer is part of the
state dict and nothing else: files keep their keys, and DeepSpeed and the optimizer never see it.
"""

from collections.abc import Collection

from torch import nn

from avff.models.encoder import Encoder


def freeze(module: nn.Module, besides: Collection[nn.Module] = ()) -> None:
    """Turns the parameters of a module and all below it into persistent buffers, in place; values stay as they are.

    Args:
        besides: submodules that go on learning, with all below them.
    """
    learning = {part for root in besides for part in root.modules()}
    for part in module.modules():
        if part not in learning:
            for name, parameter in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, parameter.detach())


def freeze_encoder(encoder: Encoder, trained_blocks: int = 0) -> None:
    """Freezes an encoder but for its last blocks and the norm after them; without such blocks, the norm as well.

    The frozen part is its beginning, so no gradient is needed there: it keeps no activations and has no backward pass.
    """
    stack = encoder.stack
    last_blocks = stack.blocks[len(stack.blocks) - trained_blocks :]
    freeze(encoder, besides=[*last_blocks, stack.norm] if trained_blocks else [])


def frozen_names(module: nn.Module) -> set[str]:
    """Returns the keys of a module's state dict that do not learn."""
    return module.state_dict().keys() - {name for name, _ in module.named_parameters()}
