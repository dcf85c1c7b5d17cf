"""Products with weights of 8 bits in a captured step, by torch's kernel.

Every product of a captured graph with a constant weight is replaced: the weight is quantized symmetrically to int8 with
one scale per output channel, the input is rounded to bfloat16, sums are float32, and the result is rounded to bfloat16.
All else (norms, attention, residual sums, biases, embeddings) keeps the model's dtype. The model is not changed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

ALIGNED = 32
"""The kernel loads whole vectors: the width of input and weight is padded with zeros to a multiple of it."""
LARGEST = 127

aten = torch.ops.aten


class Int8:
    """A `Rewrite` of captured graphs; the graphs of one instance share their quantized weights.

    Attributes:
        weights: quantized weights by the id of the original, which is kept so that the id stays its own.
        products: of the graph rewritten last, the number that were replaced.
    """

    replaces_products = True

    def __init__(self) -> None:
        self.weights: dict[tuple[int, bool], tuple[Tensor, Tensor, Tensor]] = {}
        self.products = 0

    def __call__(self, graph: GraphModule) -> Callable[[], Tensor]:
        """The function of the graph with its products replaced; the graph is changed."""
        self.replace(graph)
        return graph.forward

    def replace(self, graph: GraphModule) -> None:
        """Replaces the products of a graph on a CPU."""
        self.products = 0
        inputs: dict[Node, Node] = {}
        for node in list(graph.graph.nodes):
            if (found := _product(graph, node)) is None:
                continue
            weight, input_, bias, transposed = found
            quantized, scales = self._quantized(weight, transposed)
            with graph.graph.inserting_before(node):
                tensors = [_constant(graph, tensor) for tensor in (quantized, scales)]
                if input_ not in inputs:
                    inputs[input_] = _prepared(graph, input_, quantized.shape[1])
                shape = list(node.meta["val"].shape)
                result = graph.graph.call_function(aten._weight_int8pack_mm.default, (inputs[input_], *tensors))
                if weight.dtype != torch.bfloat16:
                    result = graph.graph.call_function(aten._to_copy.default, (result,), {"dtype": weight.dtype})
                if len(shape) != 2:
                    result = graph.graph.call_function(aten.view.default, (result, shape))
                if bias is not None:
                    result = graph.graph.call_function(aten.add.Tensor, (result, bias))
            result.meta.update(node.meta)
            node.replace_all_uses_with(result)
            graph.graph.erase_node(node)
            self.products += 1
        graph.graph.eliminate_dead_code()
        graph.recompile()

    def _quantized(self, weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        """A weight as int8 and its scales, computed once.

        Args:
            transposed: the weight is (K, N).
        """
        key = id(weight), transposed
        if key not in self.weights:
            with torch.inference_mode(False), torch.no_grad():
                self.weights[key] = weight, *quantized(weight.detach().T if transposed else weight.detach())
        return self.weights[key][1:]


def quantized(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as int8 with padded rows, and the bfloat16 scale of each row: (N, K up to ALIGNED), (N,)."""
    weight_NK = weight_NK.float()
    scales_N = (weight_NK.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny).to(torch.bfloat16)
    rounded_NK = (weight_NK / scales_N.float().unsqueeze(1)).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return nn.functional.pad(rounded_NK, (0, -weight_NK.shape[1] % ALIGNED)).contiguous(), scales_N


def _product(graph: GraphModule, node: Node) -> tuple[Tensor, Node, Any, bool] | None:
    """Of a product with a constant weight: weight, input, bias (None: none), and whether the weight is (K, N)."""
    arguments, bias, transposed = node.args, None, False
    if node.target is aten.linear.default:
        input_, of_weight = arguments[:2]
        bias = arguments[2] if len(arguments) > 2 else None
    elif node.target is aten.mm.default:
        (input_, of_weight), transposed = arguments, True
    elif node.target is aten.addmm.default and not node.kwargs:
        (bias, input_, of_weight), transposed = arguments, True
    else:
        return None
    if not isinstance(of_weight, Node) or of_weight.op != "get_attr" or not isinstance(input_, Node):
        return None
    weight = operator.attrgetter(str(of_weight.target))(graph)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    return weight, input_, bias, transposed


def _prepared(graph: GraphModule, input_: Node, width: int) -> Node:
    """The input of a product as rows of bfloat16, in aligned memory, padded to a width."""
    given = input_.meta["val"].shape
    rows = input_
    if len(given) != 2:
        rows = graph.graph.call_function(aten.reshape.default, (rows, [-1, given[-1]]))
    contiguous: dict[str, Any] = {"dtype": torch.bfloat16, "memory_format": torch.contiguous_format}
    rows = graph.graph.call_function(aten._to_copy.default, (rows,), contiguous)
    if width == given[-1]:
        return rows
    return graph.graph.call_function(aten.constant_pad_nd.default, (rows, [0, width - given[-1]]))


def _constant(graph: GraphModule, tensor: Tensor) -> Node:
    """A tensor as a constant of the graph."""
    name = f"_int8_{len(graph.graph.nodes)}"
    graph.register_buffer(name, tensor)
    return graph.graph.get_attr(name)
