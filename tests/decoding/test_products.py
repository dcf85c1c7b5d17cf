"""Products by oneDNN: equal to those of torch up to rounding; large float32 weights only; within the context only."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from test_loop import LENGTH, TEXTS
from torch import Tensor, nn

from llm2slm.decoding import choose, products
from llm2slm.decoding.int8 import Int8
from llm2slm.decoding.int8_reading import int8_products
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.decoding.lossless import LosslessDecoder
from llm2slm.decoding.products import SMALLEST, Products, onednn
from llm2slm.decoding.static import StaticForward
from llm2slm.types import Decoding

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
ONEDNN = torch.ops.mkldnn._linear_pointwise.default


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_equal_those_of_torch_up_to_rounding(shape: tuple[int, int], bias: bool, make: Any) -> None:
    model = make("t5", "t5", "memory")
    model.slm.large = nn.Linear(512, SMALLEST // 512, bias=bias)
    x = torch.randn(*shape, 512)
    expected = x.double() @ model.slm.large.weight.double().T + (model.slm.large.bias.double() if bias else 0)
    found = onednn(model)
    assert list(found.forwards) == [model.slm.large]
    with found.active():
        values = model.slm.large(x)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-4)
    assert "forward" not in vars(model.slm.large)
    del model.slm.large


@needs_onednn
def test_only_large_float32_weights_on_a_cpu_use_onednn(make: Any) -> None:
    model = make("t5", "t5", "memory")

    class Other(nn.Linear):
        """A product of another form."""

    kept = nn.Linear(512, SMALLEST // 512)
    others = [
        nn.Linear(512, SMALLEST // 512 - 1),
        nn.Linear(512, SMALLEST // 512).bfloat16(),
        nn.Linear(512, SMALLEST // 512, device="meta"),
        Other(512, SMALLEST // 512),
    ]
    model.slm.others = nn.ModuleList([*others, kept])
    assert list(onednn(model).forwards) == [kept]
    del model.slm.others


def test_the_context_ends_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="inside"), Products({layer: lambda x: x + 1}).active():
        assert torch.equal(layer(torch.zeros(1, 2)), torch.ones(1, 2))
        raise RuntimeError("inside")
    assert "forward" not in vars(layer)


def test_contexts_may_be_nested_and_hooks_are_kept(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    one, two = (Products({layer: lambda x, n=n: x + n}) for n in (1, 2))
    with one.active():
        with two.active():
            assert layer(torch.zeros(1, 2)).tolist() == [[2, 2]]
        assert layer(torch.zeros(1, 2)).tolist() == [[1, 1]]
    assert "forward" not in vars(layer)
    monkeypatch.setattr(products, "SMALLEST", 1)
    model = make("t5", "t5", "memory")
    head = model.slm.get_output_embeddings()
    assert head in onednn(model).forwards and head in int8_products(model).forwards
    head.forward = lambda x: x  # as accelerate's hooks do
    try:
        assert head not in onednn(model).forwards and head not in int8_products(model).forwards
    finally:
        del head.forward


@needs_onednn
@torch.no_grad()
def test_inputs_of_another_dtype_are_computed_by_torch() -> None:
    layer = nn.Linear(512, SMALLEST // 512)
    forward = products._onednn(layer)
    x = torch.randn(2, 512)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forward(x), layer(x)) and forward(x).dtype == torch.bfloat16
    layer.double()
    assert forward(x.double()).dtype == torch.float64


def graphs(decoder: LoopDecoder) -> list[Any]:
    """The operations of a decoder's captured steps."""
    assert isinstance(decoder.forward, StaticForward)
    found = [graph for session in decoder.forward.sessions.values() for graph in session.graphs.values()]
    return [node.target for graph in found for node in graph.__self__.graph.nodes]  # type: ignore[attr-defined]


@needs_onednn
@pytest.mark.parametrize(("slm", "mode"), [("t5", "memory"), ("llama", "replace"), ("gpt2", "cross_attention")])
def test_captured_steps_with_onednn_equal_generate(
    slm: str, mode: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SMALLEST", 1)
    model = make("t5", slm, mode)
    decoder = choose.decoder(Decoding.captured, model)
    assert isinstance(decoder, LoopDecoder)
    seen: list[Tensor] = []
    encoder = model.encoder.body.get_submodule("block.0.layer.0.SelfAttention.q")
    original = decoder.forward.reading.forwards[encoder]
    decoder.forward.reading.forwards[encoder] = lambda x: seen.append(x) or original(x)  # type: ignore[func-returns-value]
    expected = model.generate(model.collator.batch_of_texts(TEXTS), max_new_tokens=LENGTH)
    assert torch.equal(decoder.generate(decoder.batch(TEXTS), max_new_tokens=LENGTH), expected)
    assert len(seen) == 1  # the LLM's pass over the prompts
    decoder.generate(decoder.batch(TEXTS), max_new_tokens=LENGTH)
    used = graphs(decoder)
    assert ONEDNN in used and (slm == "gpt2" or torch.ops.aten.linear.default not in used)


@needs_onednn
def test_int8_steps_do_not_use_onednn(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 1)
    model = make("t5", "t5", "memory")
    int8 = Int8()
    decoder = LoopDecoder(model, StaticForward(model, int8), "int8")
    decoder.generate(decoder.batch(TEXTS), max_new_tokens=LENGTH)
    assert int8.products and ONEDNN not in graphs(decoder) and decoder.forward.reading.forwards


@needs_onednn
def test_lossless_with_onednn_equals_the_llm(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 1)
    hybrid, llm = pair("t5", "t5", "memory")
    decoder = LosslessDecoder(hybrid, llm)
    assert decoder.verifier.reading.forwards and decoder.reader.reading is decoder.verifier.reading
    batch = decoder.batch(TEXTS)
    assert torch.equal(decoder.generate(batch, max_new_tokens=LENGTH), llm.generate(batch[1], max_new_tokens=LENGTH))


@needs_onednn
@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_compiled_steps_with_onednn_equal_generate(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 1)
    model = make("t5", "t5", "memory")
    decoder = choose.decoder(Decoding.compiled, model)
    expected = model.generate(model.collator.batch_of_texts(TEXTS), max_new_tokens=LENGTH)
    assert torch.equal(decoder.generate(decoder.batch(TEXTS), max_new_tokens=LENGTH), expected)
