"""Compiled steps equal captured ones; the compile time is reported; inductor's cache is used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
from test_loop import LENGTH, TEXTS
from torch.fx import GraphModule

from llm2slm.decoding import choose
from llm2slm.decoding.capture import captured
from llm2slm.decoding.compiled import Compiled, lifted
from llm2slm.decoding.int8 import Int8
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.decoding.static import StaticForward
from llm2slm.types import Decoding, UserError

LINE = r"llm2slm: decoding=compiled: a step of (\d+ x 1) tokens compiled in ([\d.]+) s; kept in .+ \(TORCHINDUCTOR_"


@torch.no_grad()
def test_constants_become_inputs() -> None:
    weight, buffer = torch.nn.Parameter(torch.randn(3, 3)), torch.zeros(3)

    def compute() -> torch.Tensor:
        buffer.add_(weight[0])
        return buffer @ weight + weight.sum() + torch.ones(())

    graphs: list[GraphModule] = []
    captured(compute, lambda graph: graphs.append(graph) or graph.forward)  # type: ignore[func-returns-value]
    tensors = lifted(graphs[0])
    assert not [node for node in graphs[0].graph.nodes if node.op == "get_attr"]
    assert sum(each is weight for each in tensors) == sum(each is buffer for each in tensors) == 1
    assert not dict(graphs[0].named_parameters()) or len(tensors) <= 3
    found = graphs[0](*tensors)
    torch.testing.assert_close(buffer, 2 * weight[0])  # the recording and this call
    torch.testing.assert_close(found, buffer @ weight + weight.sum() + 1)
    found = graphs[0](*(torch.zeros_like(each) for each in tensors))  # other values of the same shape
    assert found.tolist() in ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("int8", [False, True])
def test_a_graph_is_compiled_once_and_its_compile_time_is_reported(
    int8: bool, make: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[GraphModule] = []

    def compile_graph(graph: GraphModule, tensors: list[torch.Tensor], options: Any = None) -> Any:
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch._inductor, "compile", compile_graph)
    model, times = make("t5", "t5", "add"), iter([100.0, 107.26, 200.0, 201.0, 0.0, 0.0])
    rewrite = Compiled(Int8() if int8 else None, clock=lambda: next(times))
    decoder = LoopDecoder(model, StaticForward(model, rewrite), "compiled")
    plain = LoopDecoder(model, StaticForward(model, Int8() if int8 else None), "captured")
    model.generation_config.eos_token_id = None
    batch = decoder.batch(TEXTS[:2])
    with torch.inference_mode():
        for _ in range(2):  # the second one uses the buffers again
            ours, theirs = (each.generate(batch, max_new_tokens=LENGTH) for each in (decoder, plain))
            assert torch.equal(ours, theirs)
    assert len(compiled) == 1
    assert re.findall(LINE, capsys.readouterr().err) == [("2 x 1", "7.3")]


def test_compile_errors_are_reported_on_one_line(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    decoder = choose.decoder(Decoding.compiled, make("t5", "t5", "add"))
    for error, words in (
        (InvalidCxxCompiler(), "torch finds no C++ compiler; install"),
        (InductorError(InvalidCxxCompiler(), None), "torch finds no C++ compiler; install"),  # type: ignore[arg-type]
        (InductorError(ValueError("such a graph\nmore"), None), "ValueError: such a graph; use decoding=captured"),  # type: ignore[arg-type]
    ):

        def fail(*_: Any, error: Exception = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr(torch._inductor, "compile", fail)
        with pytest.raises(UserError, match=f"^decoding=compiled: {re.escape(words)}") as raised:
            decoder.generate(decoder.batch(TEXTS[:1]), max_new_tokens=4)
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_missing_compiler_is_reported(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    decoder = choose.decoder(Decoding.compiled, make("t5", "t5", "add"))
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UserError, match=r"^decoding=compiled: torch"):
        decoder.generate(decoder.batch(TEXTS[:1]), max_new_tokens=4)


@pytest.mark.slow
def test_steps_compiled_by_inductor_equal_captured_ones_and_are_cached(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    libraries = []
    for _ in range(2):
        model = make("t5", "gpt2", "cross_attention")
        decoder, exact = choose.decoder(Decoding.compiled, model), choose.decoder(Decoding.captured, model)
        model.generation_config.eos_token_id = None
        with torch.inference_mode():
            ours, theirs = (each.generate(each.batch(TEXTS[:1]), max_new_tokens=LENGTH) for each in (decoder, exact))
        assert torch.equal(ours, theirs)
        libraries.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")})
    assert libraries[0] and libraries[1] == libraries[0]  # nothing is compiled again
