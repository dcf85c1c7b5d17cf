"""The precision of a training: what `trainer.precision=auto` stands for, of float32 products, of attention on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from llm2slm.config.choices import MATMUL_PRECISIONS, check_choice

AUTO, FLOAT32, BFLOAT16 = "auto", "32-true", "bf16-mixed"
"""Values of `trainer.precision`."""
CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Capabilities (`torch.cpu.get_capabilities`) of processors that multiply bfloat16 faster than float32."""


def settled(precision: str, device: str) -> str:
    """The precision that `auto` stands for on this machine; any other precision as it is.

    Args:
        precision: `trainer.precision`.
        device: cpu, cuda or mps.

    Returns:
        For `auto`: bf16-mixed on a GPU with bfloat16 and on a CPU with such products (`CPU_BFLOAT16`; a torch that
        cannot report them counts as one without), otherwise 32-true.
    """
    if precision != AUTO:
        return precision
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}
        fast = any(known.get(name) for name in CPU_BFLOAT16)
    return BFLOAT16 if fast else FLOAT32


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Precision of float32 matrix products within the block; the test afterwards uses the previous one.

    Raises:
        UserError: unknown precision.
    """
    check_choice("trainer.matmul_precision", name, MATMUL_PRECISIONS)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Float32Attention(TorchFunctionMode):
    """Within the block, attention is computed in float32 and rounded to the dtype that torch would return.

    On a CPU the backward pass of torch's attention takes up to eight times as long in bfloat16 as in float32
    (`experiments/LOG.md`, 2026-11-29), which costs more than bfloat16 saves in the other products of a step. The
    backward pass has the dtype of the forward pass. Not for activation checkpointing, which repeats the forward pass
    outside of the block.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls `func`, attention with float32 inputs."""
        del types
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query: Tensor = args[0] if args else kwargs["query"]
        rounded = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        with torch.autocast("cpu", enabled=False):
            out: Tensor = func(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})
        return out.to(rounded)


def attention(precision: str, device: str, weights: torch.dtype) -> AbstractContextManager[Any]:
    """`Float32Attention` where a training on a CPU computes attention in bfloat16, otherwise nothing.

    Args:
        precision: of Lightning's Trainer.
        device: cpu, cuda or mps.
        weights: dtype of the SLM.
    """
    in_bfloat16 = precision == BFLOAT16 or weights == torch.bfloat16
    return Float32Attention() if in_bfloat16 and device == "cpu" else nullcontext()


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
