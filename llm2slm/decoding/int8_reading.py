"""The LLM reads in int8: products of the frozen encoder with int8 weights and inputs, by torch's dynamic quantization.

A weight has one scale per output channel; the input of a product has one scale and one offset for all its values, which
are computed from them. So the representations of a prompt depend, within the precision of int8, on the other prompts of
its batch. All else keeps the LLM's dtype. The LLM is not changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from llm2slm.decoding.decoder import OnTokens
from llm2slm.decoding.int8 import LARGEST
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.types import Batch

ENGINES = ("x86", "onednn", "fbgemm")
"""torch's engines (`torch.backends.quantized.engine`) whose products are used."""
TINY = torch.finfo(torch.float32).tiny


class Int8Reading:
    """Products of an encoder in int8.

    Args:
        encoder: on a CPU; its weights are not replaced later.

    Attributes:
        products: of each module with a constant weight, its forward pass in int8.
    """

    def __init__(self, encoder: FrozenEncoder) -> None:
        self.products: dict[nn.Module, Callable[[Tensor], Tensor]] = {
            module: _product(module)
            for module in encoder.body.modules()
            if type(module) in (nn.Linear, Conv1D)  # subclasses store weights in other forms
        }

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the encoder computes in int8."""
        try:
            for module, forward in self.products.items():
                module.forward = forward
            yield
        finally:
            for module in self.products:
                module.__dict__.pop("forward", None)


def available(encoder: Any) -> bool:
    """Whether an encoder can read in int8 here."""
    on_cpu = isinstance(encoder, FrozenEncoder) and all(each.device.type == "cpu" for each in encoder.parameters())
    return on_cpu and torch.backends.quantized.engine in ENGINES


def _product(module: Any) -> Callable[[Tensor], Tensor]:
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


class ReadingDecoder(LoopDecoder):
    """A `LoopDecoder` whose system's LLM reads in int8, where it has an LLM that can (`available`)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        encoder = self.model.encoder
        self.reading = Int8Reading(encoder) if isinstance(encoder, FrozenEncoder) and available(encoder) else None

    def generate(
        self,
        batch: Batch,
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """See `Decoder`."""
        with nullcontext() if self.reading is None else self.reading.active():
            return super().generate(batch, generation_config, on_tokens=on_tokens, **arguments)
