"""Compiled encoding of short prompts: states equal to those of the modules, one graph per size, reported failures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._inductor
from sampling import representatives
from test_loop import LENGTH, TEXTS
from torch import Tensor
from torch.fx import GraphModule

from llm2slm.decoding import choose, compiled_reading
from llm2slm.decoding.compiled_reading import STEP, WORK, compiled_products
from llm2slm.decoding.lossless import LosslessDecoder
from llm2slm.types import Decoding

SYSTEMS = [
    ("t5", "t5", "add", "shared"),
    ("bart", "gpt2", "memory", "shared"),
    ("umt5", "llama", "cross_attention", "shared"),
    ("modernbert", "qwen2", "prepend", "offsets"),
    ("bert", "bart", "add", "offsets"),
    ("gemma2", "t5gemma", "memory", "shared"),
    ("qwen2", "llama", "kv", "offsets"),
    ("llama", "gpt2", "replace", "llm_tokens"),
]
LONG = "the old dog sees a small house near the river and " * 2


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """The graphs that inductor gets; they are run without compilation."""
    found: list[GraphModule] = []

    def compile_graph(graph: GraphModule, tensors: list[Tensor], options: Any = None) -> Any:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch._inductor, "compile", compile_graph)
    return found


@torch.no_grad()
@pytest.mark.parametrize("system", representatives(SYSTEMS, [SYSTEMS[i] for i in (0, 3, 6)], whole=True), ids=" ".join)
def test_states_and_responses_equal_those_of_the_modules(
    system: tuple[str, ...], make: Any, graphs: list[GraphModule], capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(*system)
    products = compiled_products(model, "compiled")
    batches = [model.collator.batch_of_texts(texts) for texts in (TEXTS[:1], TEXTS[1:2], TEXTS[:3], [LONG])]
    for batch in batches:
        expected = model.represent(batch)
        with products.active():
            found = model.represent(batch)
        torch.testing.assert_close(found.reps_BPE, expected.reps_BPE, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.mask_BP, expected.mask_BP)
    sizes = {(len(b.llm_ids_BP), -(-b.llm_ids_BP.shape[1] // STEP) * STEP) for b in batches}
    assert len(graphs) == len(sizes) > 1
    compiled, captured = (choose.decoder(each, model) for each in (Decoding.compiled, Decoding.captured))
    model.generation_config.eos_token_id = None
    for texts in (TEXTS[:1], TEXTS[:3], TEXTS[1:2]):
        ours, theirs = (each.generate(each.batch(texts), max_new_tokens=LENGTH) for each in (compiled, captured))
        assert torch.equal(ours, theirs)
    said = capsys.readouterr().err
    assert "an encoding of 1 x 32 tokens compiled" in said
    assert "prompts are encoded" not in said


@torch.no_grad()
def test_a_pass_does_not_depend_on_earlier_prompts_and_earlier_results_are_kept(make: Any, graphs: list[Any]) -> None:
    model = make("t5", "t5", "add")
    long, short = (model.collator.batch_of_texts([text]) for text in (" ".join(TEXTS[0].split() * 2), "a"))
    with compiled_products(model, "compiled").active():
        first = model.represent(short).reps_BPE
        kept = first.clone()
        model.represent(long)
        again = model.represent(short).reps_BPE
    assert torch.equal(first, kept) and torch.equal(first, again)
    assert len(graphs) == 1


@torch.no_grad()
def test_large_passes_are_computed_by_the_modules(make: Any, graphs: list[Any], monkeypatch: Any) -> None:
    model = make("t5", "t5", "add")
    linear = [each for each in model.encoder.body.modules() if isinstance(each, torch.nn.Linear)]
    weights = sum(each.weight.numel() for each in linear)
    batch = model.collator.batch_of_texts(TEXTS[:1])
    for work, compiled in ((weights * STEP - 1, 0), (weights * STEP, 1)):
        monkeypatch.setattr(compiled_reading, "WORK", work)
        with compiled_products(model, "compiled").active():
            model.represent(batch)
        assert len(graphs) == compiled
    assert WORK == 1 << 29


@torch.no_grad()
@pytest.mark.parametrize("wrong", [True, False])
def test_wrong_or_failing_graphs_are_replaced_by_the_modules(
    wrong: bool, make: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_graph(graph: GraphModule, *_: Any, **__: Any) -> Any:
        def fail(*tensors: Tensor) -> Tensor:
            if wrong:
                return graph(*tensors) + 1
            raise RuntimeError("no such kernel\nmore")

        return fail

    monkeypatch.setattr(torch._inductor, "compile", compile_graph)
    model = make("t5", "gpt2", "memory")
    batch = model.collator.batch_of_texts(TEXTS[:1])
    expected = model.represent(batch).reps_BPE
    with compiled_products(model, "compiled").active():
        for _ in range(2):
            assert torch.equal(model.represent(batch).reps_BPE, expected)
        model.represent(model.collator.batch_of_texts(TEXTS[:2]))  # another size: the line is not repeated
    reason = "gives other states" if wrong else "fails (no such kernel)"
    lines = [line for line in capsys.readouterr().err.splitlines() if "prompts are encoded" in line]
    (line,) = lines
    assert line.startswith(f"llm2slm: decoding=compiled: the compiled encoding of 1 x 32 tokens {reason}; prompts are ")


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_encoders_whose_positions_depend_on_the_length_are_not_compiled(make: Any, kind: str) -> None:
    model = make("qwen2", "gpt2", "cross_attention")
    assert model.encoder in compiled_products(model, "compiled").forwards
    model.encoder.body.config.rope_parameters = {"rope_type": kind, "factor": 2.0}
    assert model.encoder not in compiled_products(model, "compiled").forwards


def test_encoders_with_hooks_are_not_compiled(make: Any) -> None:
    model = make("t5", "t5", "add")
    assert {model.encoder, model.slm.get_encoder()} <= set(compiled_products(model, "compiled").forwards)
    for part in (model.encoder.body, model.slm.get_encoder()):
        block = next(iter(part.children()))
        block.forward = block.forward
    assert not compiled_products(model, "compiled").forwards


@torch.no_grad()
def test_lossless_decoding_encodes_by_a_compiled_pass(pair: Any, graphs: list[GraphModule]) -> None:
    hybrid, llm = pair("t5", "gpt2", "memory")
    plain, compiled = LosslessDecoder(hybrid, llm), LosslessDecoder(hybrid, llm, compiled=True)
    ours, theirs = (each.generate(each.batch(TEXTS[:1]), max_new_tokens=LENGTH) for each in (compiled, plain))
    assert torch.equal(ours, theirs)
    shapes = [tuple(graph.graph.output_node().args[0].meta["val"].shape) for graph in graphs]
    assert (1, STEP, hybrid.encoder.width) in shapes
