"""Our generation loop equals `generate` of transformers, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix import CELLS, FEW, Cell
from sampling import representatives
from torch import Tensor

from llm2slm.decoding.decoder import GenerateDecoder, generate_text
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.loop import LoopDecoder, settings, stream
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_rows
from llm2slm.types import Batch

LENGTH = 12
VARIED = {"no_repeat_ngram_size": 1}
"""No token twice; otherwise some of the tiny models repeat one token."""
TEXTS = [row["source"] for row in tiny_rows()]
SYSTEMS = [
    ("t5", "t5", "add"), ("t5", "t5", "memory"), ("gpt2", "gpt2", "add"), ("t5", "gpt2", "memory"),
    ("t5", "bart", "prepend"), ("gpt2", "gpt2", "cross_attention"), ("gpt2", "gpt2", "kv"), ("t5", "llama", "replace"),
]  # fmt: skip
FEW_SYSTEMS = [("t5", "t5", "memory"), ("gpt2", "gpt2", "add")]


def generate(model: LLM2SLM, batch: Batch, **arguments: Any) -> Tensor:
    """Responses by our loop."""
    return LoopDecoder(model, Forward(model), "eager").generate(batch, **arguments)


def both(model: LLM2SLM, batch: Batch, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Responses by our loop and by transformers, with the same random numbers."""
    if "max_length" not in arguments:
        arguments = {"max_new_tokens": LENGTH} | arguments
    torch.manual_seed(3)
    ours = generate(model, batch, **arguments)
    torch.manual_seed(3)
    return ours, model.generate(batch, **arguments)


def lengths_of(rows: list[list[int]], ends: list[int]) -> list[int]:
    """Length of each row up to its first end token."""
    return [next((t + 1 for t, i in enumerate(row) if i in ends), len(row)) for row in rows]


def end_at_different_steps(model: LLM2SLM, batch: Batch, **arguments: Any) -> list[int]:
    """Sets end tokens with which the rows finish at different steps."""
    rows = model.generate(batch, max_new_tokens=LENGTH, **arguments).tolist()

    def steps(pair: list[int]) -> int:
        return len(set(lengths_of(rows, pair)))

    ends = max(([row[2], other[7]] for row in rows for other in rows), key=steps)
    if steps(ends) == 1:  # the rows start with the same tokens
        ends = max(([one, other] for one in rows[0][2:] for row in rows for other in row[2:]), key=steps)
    assert len(set(lengths_of(rows, ends))) > 1
    model.generation_config.eos_token_id = ends
    return ends


@pytest.mark.parametrize("cell", representatives(CELLS, FEW, whole=True), ids="-".join)
def test_greedy_responses_of_every_system_equal_generate(cell: Cell, make: Any) -> None:
    model = make(*cell)
    batch = model.collator.batch_of_texts(TEXTS)
    model.generation_config.eos_token_id = None
    ours, theirs = both(model, batch, **VARIED)
    assert torch.equal(ours, theirs)
    assert len(set(ours[0].tolist())) == LENGTH
    end_at_different_steps(model, batch, **VARIED)
    ours, theirs = both(model, batch, **VARIED)
    assert torch.equal(ours, theirs) and (theirs == model.generation_config.pad_token_id).any()


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW_SYSTEMS, whole=True), ids="-".join)
@pytest.mark.parametrize(
    "arguments",
    [
        {"min_new_tokens": 9},
        {"do_sample": True, "temperature": 0.7, "top_k": 11, "num_return_sequences": 3, "eos_token_id": None},
        {"do_sample": True, "top_p": 0.8, "min_p": 0.01, "eos_token_id": None},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [9, 10, 11]},
        {"forced_bos_token_id": 8},
        {"min_length": 30},
        {"max_length": 7},
    ],
    ids="-".join,
)
def test_responses_with_generation_settings_equal_generate(
    system: tuple[str, str, str], arguments: dict[str, Any], make: Any
) -> None:
    model = make(*system)
    batch = model.collator.batch_of_texts(TEXTS)
    end_at_different_steps(model, batch)
    if "eos_token_id" in arguments:
        model.generation_config.eos_token_id = None  # no row ends: the random numbers of all rows are the same
    ours, theirs = both(model, batch, **arguments)
    assert torch.equal(ours, theirs)
    if system in FEW_SYSTEMS:  # where each setting has an effect
        plain = model.generate(batch, max_new_tokens=LENGTH)
        assert ours.shape != plain.shape or not torch.equal(ours, plain)


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW_SYSTEMS, whole=True), ids="-".join)
def test_the_repetition_penalty_is_applied_per_row(system: tuple[str, str, str], make: Any) -> None:
    """In a padded row of embeddings, transformers 5.23 does not penalize as many first tokens as paddings."""
    model = make(*system)
    penalty = {"repetition_penalty": 9.0, "max_new_tokens": LENGTH}
    rows = [model.generate(model.collator.batch_of_texts([text]), **penalty) for text in TEXTS]
    plain = model.generate(model.collator.batch_of_texts(TEXTS[:1]), max_new_tokens=LENGTH)
    model.generation_config.eos_token_id = ends = [int(rows[0][0, 4])]
    ours = generate(model, model.collator.batch_of_texts(TEXTS), **penalty).tolist()
    expected = [row[0].tolist() for row in rows]
    for row, alone, length in zip(ours, expected, lengths_of(expected, ends), strict=True):
        assert row[:length] == alone[:length]
    assert not torch.equal(plain, rows[0])


@pytest.mark.parametrize("tune", ["prompt", "prefix"])
@pytest.mark.parametrize("slm", ["t5", "gpt2"])
def test_responses_with_virtual_tokens_equal_generate(slm: str, tune: str, make: Any) -> None:
    pytest.importorskip("peft")
    model = make("t5", slm, "add", tune=tune)
    for name, parameter in model.slm.named_parameters():
        if parameter.requires_grad and ("prompt" in name or "virtual" in name):
            parameter.data.normal_()
    ours, theirs = both(model, model.collator.batch_of_texts(TEXTS))
    assert torch.equal(ours, theirs)


def test_a_finished_row_is_removed_from_the_batch(make: Any) -> None:
    model = make("t5", "gpt2", "cross_attention")
    batch = model.collator.batch_of_texts(TEXTS)
    expected = model.generate(batch, max_new_tokens=LENGTH)
    ends = end_at_different_steps(model, batch)
    lengths = lengths_of(expected.tolist(), ends)
    rows = [step.rows_B.tolist() for step in stream(model, batch, settings(model, max_new_tokens=LENGTH))]
    assert rows == [[row for row, n in enumerate(lengths) if n > step] for step in range(max(lengths))]


@pytest.mark.parametrize("decoder", [GenerateDecoder, lambda model: LoopDecoder(model, Forward(model), "eager")])
def test_tokens_are_streamed_as_they_are_generated(decoder: Any, make: Any) -> None:
    model = make("t5", "gpt2", "cross_attention")
    decoder = decoder(model)
    end_at_different_steps(model, decoder.batch(TEXTS))
    arrived: list[list[int]] = [[] for _ in TEXTS]

    def receive(rows_K: Tensor, ids_KN: Tensor, counts_K: Tensor) -> None:
        for row, ids, count in zip(rows_K.tolist(), ids_KN.tolist(), counts_K.tolist(), strict=True):
            arrived[row] += ids[:count]

    whole = decoder.generate(decoder.batch(TEXTS), on_tokens=receive, max_new_tokens=LENGTH).tolist()
    lengths = lengths_of(whole, model.generation_config.eos_token_id)
    cut = [row[:length] for row, length in zip(arrived, lengths, strict=True)]
    assert cut == [row[:length] for row, length in zip(whole, lengths, strict=True)]
    assert generate_text(decoder, TEXTS, 2, max_new_tokens=LENGTH) == model.generate_text(TEXTS, max_new_tokens=LENGTH)
