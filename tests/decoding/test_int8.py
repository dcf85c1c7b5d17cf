"""Products with weights of 8 bits: a step equals that of a model whose weights were quantized by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sampling import representatives
from test_loop import LENGTH, TEXTS
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm2slm.decoding import choose
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.int8 import Int8, quantized
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.decoding.static import StaticForward
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Decoding

SYSTEMS = {
    # products of a step: of each block, and the output matrix (tied in all three)
    ("t5", "t5", "add"): 3 * (4 + 2 + 2) + 1,  # self-attention, queries and outputs of cross-attention, feed-forward
    ("gpt2", "gpt2", "add"): 4 * (2 + 2) + 1,  # of Conv1D, whose weights are (K, N)
    ("t5", "llama", "replace"): 4 * (4 + 3) + 1,
    ("t5", "gpt2", "cross_attention"): 4 * (2 + 2 + 2) + 1,  # with the gated layers
}


def by_hand(weight_NK: Tensor) -> Tensor:
    """A weight with 255 values in each row, as float64."""
    rows = []
    for row_K in weight_NK.detach().double():
        scale = (row_K.abs().max() / 127).to(torch.bfloat16).double()
        rows.append((row_K / scale).round().clamp(-127, 127) * scale)
    return torch.stack(rows)


def product(weight_NK: Tensor, bias: Tensor | None, exact: bool) -> Callable[[Tensor], Tensor]:
    """The product with a quantized weight; exact: without rounding input and result to bfloat16."""
    rounded = by_hand(weight_NK)

    def forward(x: Tensor) -> Tensor:
        given = x if exact else x.to(torch.bfloat16)
        result = (given.double() @ rounded.T).to(torch.float32 if exact else torch.bfloat16).float()
        return result if bias is None else result + bias

    return forward


@contextmanager
def quantized_by_hand(model: LLM2SLM, exact: bool) -> Iterator[None]:
    """Within this context, the products of the system's modules have quantized weights."""
    changed = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    for module in changed:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        module.forward = product(weight, module.bias, exact)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "names"),
    representatives(
        [(rows, names) for rows in (1, 3) for names in SYSTEMS],
        lambda case: case[0] == (1 if case[1] in list(SYSTEMS)[::3] else 3),  # each system once
    ),
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_logits_are_those_of_quantized_weights(names: tuple[str, str, str], rows: int, make: Any) -> None:
    model = make(*names)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    batch, int8 = model.collator.batch_of_texts(TEXTS[:rows]), Int8()
    prompt, ids_TB = model.prefill(batch), torch.randint(5, 60, (4, rows), generator=torch.Generator().manual_seed(1))

    def steps(forward: Forward, start: Forward | None = None) -> Tensor:
        state, _ = (start or forward).start(prompt, 8)
        found = []
        for ids_B in ids_TB:
            state, logits_BV = forward.step(state, ids_B)
            found.append(logits_BV.clone())
        return torch.stack(found)

    found, plain = steps(StaticForward(model, int8)), steps(Forward(model))
    assert int8.products == SYSTEMS[names] == len(int8.weights)

    def expected(exact: bool) -> Tensor:
        forward = Forward(model)
        state, _ = forward.start(prompt, 8)  # with unquantized weights
        logits = []
        with quantized_by_hand(model, exact):
            for ids_B in ids_TB:
                state, logits_BV = forward.step(state, ids_B)
                logits.append(logits_BV)
        return torch.stack(logits)

    scale = float(plain.std())
    rounded, unrounded = expected(exact=False), expected(exact=True)
    # sums in another order are rarely rounded to another value in bfloat16
    assert float((found - rounded).abs().mean()) < 2e-3 * scale
    torch.testing.assert_close(found, rounded, atol=3e-2 * scale, rtol=1e-2)
    assert float((found - unrounded).abs().mean()) < 3e-2 * scale
    assert float((found - plain).abs().mean()) > 4 * float((found - rounded).abs().mean())  # int8 is not float32
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_weights_are_quantized_to_the_exact_values() -> None:
    weight_NK = torch.tensor([[0.5, -1.27, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0], [3e-5, 1e-5, -1e-5, 2e-5]])
    found, scales_N = quantized(weight_NK)
    assert found.shape == (3, 32) and found.dtype == torch.int8 and not found[:, 4:].any()
    scale = float(torch.tensor(0.01).bfloat16())
    assert found[0, :4].tolist() == [round(0.5 / scale), -127, round(0.25 / scale), 0]
    assert found[1].tolist() == [0] * 32
    kept = [0, 2]
    torch.testing.assert_close((found[:, :4] * scales_N.double().unsqueeze(1))[kept], by_hand(weight_NK[kept]))


def test_weights_are_quantized_once(make: Any) -> None:
    """Sessions of several sizes share them."""
    model, int8 = make("t5", "t5", "add"), Int8()
    decoder = LoopDecoder(model, StaticForward(model, int8), "int8")
    decoder.generate(decoder.batch(TEXTS[:1]), max_new_tokens=LENGTH)
    first = {key: (each[1].data_ptr(), each[2].data_ptr()) for key, each in int8.weights.items()}
    decoder.generate(decoder.batch(TEXTS), max_new_tokens=LENGTH)
    assert len(decoder.forward.sessions) > 1
    assert {key: (each[1].data_ptr(), each[2].data_ptr()) for key, each in int8.weights.items()} == first


@torch.no_grad()
def test_int8_steps_of_a_bfloat16_model_are_close_to_exact_ones(make: Any) -> None:
    model = make("t5", "gpt2", "cross_attention").to(torch.bfloat16)
    prompt = model.prefill(model.collator.batch_of_texts(TEXTS))
    forward, plain = StaticForward(model, int8 := Int8()), Forward(model)
    state, logits_BV = forward.start(prompt, 8)
    _, found = forward.step(state, logits_BV.argmax(-1))
    _, wanted = plain.step(plain.start(prompt, 8)[0], logits_BV.argmax(-1))
    assert int8.products == SYSTEMS["t5", "gpt2", "cross_attention"] and found.dtype == torch.bfloat16
    assert float((found - wanted).float().std()) < 0.05 * float(wanted.float().std())


def test_int8_is_chosen_by_name(make: Any) -> None:
    decoder = choose.decoder(Decoding.int8, make("t5", "t5", "add"))
    assert (decoder.name, isinstance(decoder.forward.rewrite, Int8)) == ("int8", True)  # type: ignore[attr-defined]
