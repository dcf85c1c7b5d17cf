"""Encoding in int8: compared with products by hand; within the context only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_loop import LENGTH, TEXTS
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm2slm.decoding import choose
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.int8_reading import int8_products
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.decoding.static import StaticForward
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.types import Decoding

needs_engine = pytest.mark.skipif(torch.backends.quantized.engine == "qnnpack", reason="torch has no such products")


def by_hand(x: Tensor, weight_NK: Tensor, bits: int) -> Tensor:
    """The product of quantized values: 255 per weight row, 2^bits in the range of the input, including zero."""
    scale_N1 = weight_NK.abs().amax(1, keepdim=True) / 127
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / (2**bits - 1)
    offset = round(-low / step)
    values = ((x / step).round() + offset).clamp(0, 2**bits - 1) - offset
    return (values.double() * step) @ ((weight_NK / scale_N1).round() * scale_N1).double().T


@needs_engine
@torch.no_grad()
@pytest.mark.parametrize("llm", ["t5", "gpt2", "llama"])
def test_every_product_equals_that_of_quantized_values(llm: str, make: Any) -> None:
    system = make(llm, "t5", "memory")
    assert isinstance(system.encoder, FrozenEncoder)
    reading = int8_products(system)
    every = [*system.encoder.body.modules(), *system.slm.modules()]
    modules = [each for each in every if isinstance(each, nn.Linear | Conv1D)]
    assert list(reading.forwards) == modules and len(modules) >= 20
    bits = 8 if torch.cpu.get_capabilities().get("avx512_vnni", False) else 7
    for module in modules:
        weight_NK = module.weight.T if isinstance(module, Conv1D) else module.weight
        x = torch.randn(2, 5, weight_NK.shape[1], generator=torch.Generator().manual_seed(3))
        plain = module(x)
        with reading.active():
            found = module(x)
        wanted = by_hand(x, weight_NK, bits) + (0 if module.bias is None else module.bias)
        near = float((found - wanted).abs().mean())
        # values halfway between two steps may be rounded either way
        assert near < 2e-3 * float(wanted.std()) and near < 0.3 * float((found - plain).abs().mean())
        assert torch.equal(module(x), plain)  # outside of the context
        assert "forward" not in vars(module)


@needs_engine
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_representations_are_close_to_exact_ones(dtype: torch.dtype, make: Any) -> None:
    model = make("t5", "t5", "memory")
    batch = model.collator.batch_of_texts(TEXTS)
    plain = model.represent(batch)
    model.encoder.to(dtype)
    with int8_products(model).active():
        found = model.represent(batch)
    assert found.reps_BPE.dtype == dtype and torch.equal(found.mask_BP, plain.mask_BP)
    error = float((found.reps_BPE.float() - plain.reps_BPE).norm() / plain.reps_BPE.norm())
    assert 1e-4 < error < 0.1


@needs_engine
def test_only_int8_decoders_encode_in_int8(make: Any) -> None:
    """The decoder's first token is that after int8 representations and an int8 pass; the model keeps its weights."""
    model = make("t5", "t5", "memory")
    decoder = choose.decoder(Decoding.int8, model)
    assert isinstance(decoder, LoopDecoder) and isinstance(decoder.forward, StaticForward)
    reading = decoder.forward.reading
    captured = choose.decoder(Decoding.captured, model)
    assert isinstance(captured, LoopDecoder) and not captured.forward.reading.forwards  # tiny products
    batch = decoder.batch(TEXTS)
    seen, first = [], []
    expected = model.represent(batch).reps_BPE
    forward, start = model.encoder.forward, decoder.forward.start
    model.encoder.forward = lambda *inputs: seen.append(forward(*inputs)) or seen[-1]
    decoder.forward.start = lambda *inputs: first.append(start(*inputs)) or first[-1]  # type: ignore[method-assign]
    decoder.generate(batch, max_new_tokens=LENGTH)
    with torch.no_grad(), reading.active():
        assert torch.equal(seen[0].reps_BPE, forward(batch.llm_ids_BP, batch.llm_mask_BP).reps_BPE)
        prompt = model.prefill(batch)
        assert torch.equal(first[0][1], Forward(model).start(prompt, LENGTH)[1])
    with torch.no_grad():
        assert not torch.equal(first[0][1], Forward(model).start(prompt, LENGTH)[1])
    assert not torch.equal(seen[0].reps_BPE, expected) and torch.equal(model.represent(batch).reps_BPE, expected)


def test_int8_decoding_without_int8_products_encodes_exactly(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("t5", "t5", "memory")
    monkeypatch.setattr("llm2slm.decoding.int8_reading.ENGINES", ())
    decoder = choose.decoder(Decoding.int8, model)
    assert isinstance(decoder, LoopDecoder) and not decoder.forward.reading.forwards
    assert decoder.generate(decoder.batch(TEXTS), max_new_tokens=3).shape[0] == len(TEXTS)
