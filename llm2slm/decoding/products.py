"""Products of a model with its weights, computed by other kernels within a context; here by oneDNN in float32.

On x86 processors torch computes float32 products by MKL, which for a few rows uses one thread on some of them. oneDNN
reads the same weights, without a copy, with all threads: a matrix of 1024 x 4096 times 1 to 64 rows takes about half as
long on an AMD EPYC with two threads. Results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm2slm.models.encoder import FrozenEncoder

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

SMALLEST = 1 << 18
"""Elements of a weight: of smaller ones MKL's product is as fast or faster, as a call of oneDNN costs about 12 us."""

Product = Callable[[Tensor], Tensor]
Pass = Callable[..., Any]
"""A `Product`, or the forward pass of a module that has several."""


class Products:
    """Other forward passes of some modules.

    Args:
        forwards: of each module, its forward pass within the context.
    """

    def __init__(self, forwards: Mapping[nn.Module, Pass]) -> None:
        self.forwards = dict(forwards)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the modules compute by `forwards`, without gradients."""
        before = {module: module.__dict__.get("forward") for module in self.forwards}
        try:
            for module, forward in self.forwards.items():
                module.forward = forward
            yield
        finally:
            for module, forward_before in before.items():
                if forward_before is None:
                    module.__dict__.pop("forward", None)
                else:  # of a context around this one
                    module.forward = forward_before


def layers(model: LLM2SLM) -> Iterator[nn.Module]:
    """The modules of a system's SLM, and of the LLM that encodes for it."""
    if isinstance(model.encoder, FrozenEncoder):
        yield from model.encoder.body.modules()
    yield from model.slm.modules()


def onednn(model: LLM2SLM) -> Products:
    """Large float32 products on a CPU by oneDNN; none where torch has no oneDNN, or the model is on another device."""
    if not torch.backends.mkldnn.is_available():
        return Products({})
    return Products({module: _onednn(module) for module in layers(model) if _large(module)})


def plain(module: Any) -> bool:
    """Whether a module's weight is on the CPU, and its forward pass is that of its class, which hooks may replace."""
    return module.weight.device.type == "cpu" and "forward" not in vars(module)


def _large(module: nn.Module) -> bool:
    """Whether a module is a product that oneDNN computes sooner."""
    if type(module) is not nn.Linear or not plain(module):  # subclasses store weights in other forms
        return False
    weight = module.weight
    return weight.dtype == torch.float32 and weight.is_contiguous() and weight.numel() >= SMALLEST


def _onednn(module: Any) -> Product:
    """The forward pass of a linear layer by oneDNN."""

    def forward(x: Tensor) -> Tensor:
        if not x.dtype == module.weight.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(x, module.weight, module.bias)
        return torch.ops.mkldnn._linear_pointwise(x, module.weight, module.bias, "none", [], "")  # type: ignore[no-any-return]

    return forward
