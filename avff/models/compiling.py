"""torch.compile, where it pays: the transformer blocks, which hold nearly all of the work."""

from typing import Any

import torch
from torch import nn

from avff.models.transformer import Block

MAX_GRAPHS = 16
"""Of one process: two encoders, A2V, V2A and two decoders, each with and without gradient, leave room for two more."""


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compiles each block for itself, in place: blocks of equal shapes share one graph.

    `forward` is compiled, not the module's call: what an engine hooks onto a block stays outside of the graph. A block
    that cannot be one graph is an error, and so are more than `MAX_GRAPHS` graphs: shapes that change all the time.

    Args:
        options: for `torch.compile`, such as `backend`.
    """
    from torch._dynamo import config  # a second or two, which only those who compile have to wait

    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    for module in model.modules():
        if isinstance(module, Block):
            module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False, **options)  # type: ignore[method-assign]
