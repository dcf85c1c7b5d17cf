"""The LLM reads in int8: against products by hand; within the context only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_loop import LENGTH, TEXTS
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm2slm.decoding import choose
from llm2slm.decoding.int8_reading import Int8Reading, ReadingDecoder, available
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.types import Decoding

needs_engine = pytest.mark.skipif(torch.backends.quantized.engine == "qnnpack", reason="torch has no such products")


def by_hand(x: Tensor, weight_NK: Tensor, bits: int) -> Tensor:
    """The product of rounded values: of each weight row 255, of the input 2^bits in its range, zero among them."""
    scale_N1 = weight_NK.abs().amax(1, keepdim=True) / 127
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / (2**bits - 1)
    offset = round(-low / step)
    values = ((x / step).round() + offset).clamp(0, 2**bits - 1) - offset
    return (values.double() * step) @ ((weight_NK / scale_N1).round() * scale_N1).double().T


@needs_engine
@torch.no_grad()
@pytest.mark.parametrize("llm", ["t5", "gpt2", "llama"])
def test_every_product(llm: str, make: Any) -> None:
    encoder = make(llm, "t5", "memory").encoder
    assert isinstance(encoder, FrozenEncoder)
    reading = Int8Reading(encoder)
    modules = [each for each in encoder.body.modules() if isinstance(each, nn.Linear | Conv1D)]
    assert list(reading.products) == modules and len(modules) >= 8
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
def test_representations(dtype: torch.dtype, make: Any) -> None:
    model = make("t5", "t5", "memory")
    batch = model.collator.batch_of_texts(TEXTS)
    plain = model.represent(batch)
    encoder = model.encoder.to(dtype)
    with Int8Reading(encoder).active():
        found = model.represent(batch)
    assert found.reps_BPE.dtype == dtype and torch.equal(found.mask_BP, plain.mask_BP)
    error = float((found.reps_BPE.float() - plain.reps_BPE).norm() / plain.reps_BPE.norm())
    assert 1e-4 < error < 0.1


@needs_engine
def test_of_the_int8_decoders_only(make: Any) -> None:
    """The decoder's responses are those after int8 representations; the model keeps its own ones."""
    model = make("t5", "t5", "memory")
    decoder = choose.decoder(Decoding.int8, model)
    assert isinstance(decoder, ReadingDecoder) and decoder.reading is not None
    assert not isinstance(choose.decoder(Decoding.captured, model), ReadingDecoder)
    batch, seen = decoder.batch(TEXTS), []
    expected = model.represent(batch).reps_BPE
    forward = model.encoder.forward
    model.encoder.forward = lambda *inputs: seen.append(forward(*inputs)) or seen[-1]
    decoder.generate(batch, max_new_tokens=LENGTH)
    with decoder.reading.active():
        assert torch.equal(seen[0].reps_BPE, forward(batch.llm_ids_BP, batch.llm_mask_BP).reps_BPE)
    assert not torch.equal(seen[0].reps_BPE, expected) and torch.equal(model.represent(batch).reps_BPE, expected)


def test_without_an_llm_or_its_products(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not available(None)
    model = make("t5", "t5", "memory")
    monkeypatch.setattr("llm2slm.decoding.int8_reading.ENGINES", ())
    decoder = choose.decoder(Decoding.int8, model)
    assert isinstance(decoder, ReadingDecoder) and decoder.reading is None
    assert decoder.generate(decoder.batch(TEXTS), max_new_tokens=3).shape[0] == len(TEXTS)
