"""A forward pass as a graph of tensor operations, which runs without the Python code of a model's modules.

On a GPU the graph is recorded once more, as a CUDA graph (`replayed`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from llm2slm.types import UserError, reason_of

WARM_UPS = 3
"""Runs before a CUDA graph is recorded, in which libraries allocate and choose kernels."""
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

    # one mode for the metadata of all nodes: make_fx makes another one for each node otherwise, at half of its time
    with tracing(TracingContext(FakeTensorMode())):
        graph = make_fx(recorded, pre_dispatch=True)()
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.dropout.default and not node.args[2]:  # in eval mode the identity
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph.forward if rewrite is None else rewrite(graph), results[0]


def replayed(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A function as one CUDA graph: every call launches all its kernels at once.

    It is run `WARM_UPS` times on another stream, recorded, and never run by Python again.

    Args:
        compute: reads and changes tensors that exist already and does not wait for the GPU; running it again with the
            same inputs changes nothing.

    Returns:
        A function without arguments. Its result is one tensor, which the next call overwrites.

    Raises:
        UserError: it cannot be recorded.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.inference_mode():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph):
                result = compute()
        except RuntimeError as error:
            reason = reason_of(error)
            raise UserError(f"this model's step cannot be a CUDA graph ({reason}); use decoding=eager") from error

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
