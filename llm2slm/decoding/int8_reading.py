"""Prompts are processed in int8: products of the LLM's encoder, and of the SLM's pass over the prompt.

Weights and inputs of the products are int8, by torch's dynamic quantization.

A weight has one scale per output channel; the input of a product has one scale and one offset for all its values, which
are computed from them. So the representations of a prompt depend, within the precision of int8, on the other prompts of
its batch. All else keeps the model's dtype. The models are not changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm2slm.decoding.int8 import LARGEST
from llm2slm.decoding.products import Product, Products, layers, plain
from llm2slm.types import Reps

if TYPE_CHECKING:
    from llm2slm.models.encoder import FrozenEncoder
    from llm2slm.models.hybrid import LLM2SLM

ENGINES = ("x86", "onednn", "fbgemm")
"""torch's engines (`torch.backends.quantized.engine`) whose products are used."""
TINY = torch.finfo(torch.float32).tiny


def available() -> bool:
    """Whether this build of torch has int8 products."""
    return torch.backends.quantized.engine in ENGINES


def int8_products(model: LLM2SLM) -> Products:
    """The products of a system's prompts in int8; none where torch has no such products.

    Args:
        model: on a CPU; its weights are not replaced later.
    """
    return _products(layers(model))


def int8_encoder(encoder: FrozenEncoder) -> Products:
    """The passes of an LLM that encodes, in int8; none where torch has no such products. As `int8_products`.

    The layers compute in int8 within the encoder's passes only: another system (as a teacher) may share them.
    """
    inner = _products(encoder.body.modules())

    def forward(ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        with inner.active():
            return type(encoder).forward(encoder, ids_BP, mask_BP)

    return Products({encoder: forward} if inner.forwards else {})


def replaceable(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Those of the modules whose products int8 replaces: linear layers with plain weights on a CPU."""
    return (module for module in modules if type(module) in (nn.Linear, Conv1D) and plain(module))


def _products(modules: Iterable[nn.Module]) -> Products:
    """The products of those of the modules that have one."""
    return Products({module: _product(module) for module in replaceable(modules)} if available() else {})


def _product(module: Any) -> Product:
    """The forward pass of a module with quantized weights."""
    with torch.inference_mode(False), torch.no_grad():
        weight_NK = (module.weight.T if isinstance(module, Conv1D) else module.weight).detach().float().contiguous()
        scales_N = (weight_NK.abs().amax(1) / LARGEST).clamp(min=TINY).double()
        offsets_N = torch.zeros(len(weight_NK), dtype=torch.int64)
        with warnings.catch_warnings():  # the function is deprecated, and its successor is no part of torch
            warnings.filterwarnings("ignore", message=".*quantize_per_channel")
            quantized = torch.quantize_per_channel(weight_NK, scales_N, offsets_N, 0, torch.qint8)
        bias = None if module.bias is None else module.bias.detach().float()
        packed = torch.ops.quantized.linear_prepack(quantized, bias)
    # 7 bits for inputs where the processor has no instructions for int8 (VNNI): 8 bits could overflow sums of 16 bits
    reduced = not torch.cpu.get_capabilities().get("avx512_vnni", False)

    def forward(x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x.float(), packed, reduced).to(x.dtype)  # type: ignore[no-any-return]

    return forward
