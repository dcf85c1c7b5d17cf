"""A forward pass as a graph of tensor operations, which runs without the Python code of a model's modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

Rewrite = Callable[[GraphModule], Callable[[], Tensor]]
"""Makes a function of a captured graph that computes the same, or the same in lower precision."""


def captured(compute: Callable[[], Tensor], rewrite: Rewrite | None = None) -> tuple[Callable[[], Tensor], Tensor]:
    """The operations of a function as a graph over the same tensors, and the result of the run that recorded them.

    The operations are recorded by `make_fx` before autograd decomposes them. Recording runs the function once, with all
    changes of its buffers.

    Args:
        compute: reads and changes tensors that exist already; its control flow does not depend on their values.
        rewrite: applied to the graph.
    """
    results: list[Tensor] = []

    def recorded() -> Tensor:
        results.append(compute())
        return results[0]

    graph = make_fx(recorded, pre_dispatch=True)()
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.dropout.default and not node.args[2]:  # in eval mode the identity
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph.forward if rewrite is None else rewrite(graph), results[0]
