"""Captured graphs compiled by torch's inductor, whose cache on disk makes later processes start sooner."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from llm2slm.decoding.int8 import Int8
from llm2slm.types import UserError, reason_of

OPTIONS = {"pattern_matcher": False}
"""Of inductor: no replacement of patterns, since those for oneDNN's products take constant weights only."""


class Compiled:
    """A `Rewrite` that compiles a captured graph, and reports the time on stderr.

    Args:
        int8: replaces the products before.
        name: of the decoder, for messages.
        clock: seconds.
        what: a graph computes, for messages.
    """

    def __init__(
        self,
        int8: Int8 | None = None,
        name: str = "compiled",
        clock: Callable[[], float] = time.perf_counter,
        what: str = "a step",
    ) -> None:
        self.what = what
        self.name, self.instead = name, name.removeprefix("compiled_") if "_" in name else "captured"
        self.int8, self.clock, self.replaces_products = int8, clock, int8 is not None

    def __call__(self, graph: GraphModule) -> Callable[[], Tensor]:
        """The compiled function of a graph.

        Raises:
            UserError: there is no C++ compiler.
        """
        if self.int8 is not None:
            self.int8.replace(graph)
        tensors, shape, onednn = lifted(graph), _shape(graph), _uses_onednn(graph)  # inductor changes the graph
        from torch._inductor import compile as compile_graph
        from torch._inductor.exc import InductorError, InvalidCxxCompiler
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        started = self.clock()
        try:
            # outside of inference mode, in which inductor does not reuse what it has compiled elsewhere
            with torch.inference_mode(False), torch.no_grad(), _onednn_as_it_is() if onednn else nullcontext():
                compute: Any = compile_graph(graph, list(tensors), options=OPTIONS if onednn else None)
        except (InductorError, InvalidCxxCompiler) as error:
            cause = error if isinstance(error, InvalidCxxCompiler) else getattr(error, "inner_exception", error)
            if isinstance(cause, InvalidCxxCompiler):
                raise UserError(f"decoding={self.name}: torch finds no C++ compiler; install g++ or clang++, or use "
                                f"decoding={self.instead}") from error  # fmt: skip
            raise UserError(f"decoding={self.name}: {reason_of(error)}; use decoding={self.instead}") from error
        print(
            f"llm2slm: decoding={self.name}: {self.what} of {shape} compiled in {self.clock() - started:.1f} s; kept "
            f"in {cache_dir()} (TORCHINDUCTOR_CACHE_DIR)",
            file=sys.stderr,
        )
        return lambda: compute(*tensors)


def _uses_onednn(graph: GraphModule) -> bool:
    """Whether a graph has products of oneDNN (`products.onednn`), whose operator some builds of torch lack."""
    return torch.backends.mkldnn.is_available() and any(
        node.target is torch.ops.mkldnn._linear_pointwise.default for node in graph.graph.nodes
    )


def _onednn_as_it_is() -> Any:
    """Within this context inductor calls oneDNN's products (`products.onednn`) by torch's operator. Its template for
    them takes weights that are constants of the graph only."""
    from torch._inductor import lowering

    product = torch.ops.mkldnn._linear_pointwise.default
    return patch.dict(lowering.lowerings, {product: lowering.fallback_handler(product, add_to_fallback_set=False)})


def lifted(graph: GraphModule) -> list[Tensor]:
    """Makes the constants of a graph its inputs, each tensor once; returns them in the order of the inputs.

    A compiled graph then depends on their shapes and not on their values, and changes them in place.
    """
    constants = [(node, getattr(graph, str(node.target))) for node in graph.graph.nodes if node.op == "get_attr"]
    tensors = list({id(tensor): tensor for _, tensor in constants}.values())
    holders: dict[int, Node] = {}
    with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
        for number, tensor in enumerate(tensors):
            holders[id(tensor)] = graph.graph.placeholder(f"tensor_{number}")
            holders[id(tensor)].meta["val"] = tensor
    for node, tensor in constants:
        node.replace_all_uses_with(holders[id(tensor)])
        graph.graph.erase_node(node)
    graph.recompile()
    return tensors


def _shape(graph: GraphModule) -> str:
    """Rows and tokens of a captured pass."""
    output = graph.graph.output_node().args[0]
    rows, tokens = output.meta["val"].shape[:2]  # type: ignore[union-attr]
    return f"{rows} x {tokens} tokens"
