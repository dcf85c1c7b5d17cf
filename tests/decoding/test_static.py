"""Captured steps over buffers equal transformers: its `generate`, and its logits under teacher forcing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from matrix import CELLS, FEW, Cell
from sampling import representatives
from test_loop import LENGTH, TEXTS, VARIED, end_at_different_steps, lengths_of

from llm2slm.decoding.loop import LoopDecoder, settings, stream
from llm2slm.decoding.session import CAPTURED
from llm2slm.decoding.static import StaticForward, StaticState, misfit
from llm2slm.models.hybrid import LLM2SLM


def captured(model: LLM2SLM) -> LoopDecoder:
    return LoopDecoder(model, StaticForward(model), "captured")


BY_ROWS = [cell for cell in FEW if cell[2] in ("kv", "add") or cell[1] in ("bart", "gpt2")]
AS_A_WHOLE = list({cell[1]: cell for cell in FEW if cell[1] not in {taken[1] for taken in BY_ROWS}}.values())
"""Systems of the default run: the former for rows of different lengths, the latter for `generate`. Each SLM and each
conditioning of FEW is in one of them."""


@pytest.mark.parametrize("cell", representatives(CELLS, AS_A_WHOLE, whole=True), ids="-".join)
def test_greedy_responses_of_every_system_equal_generate(cell: Cell, make: Any) -> None:
    model = make(*cell)
    assert misfit(model) is None
    decoder, batch = captured(model), model.collator.batch_of_texts(TEXTS)
    arguments = {"max_new_tokens": LENGTH, **VARIED}
    model.generation_config.eos_token_id = None
    assert torch.equal(decoder.generate(batch, **arguments), model.generate(batch, **arguments))
    end_at_different_steps(model, batch, **VARIED)
    assert torch.equal(decoder.generate(batch, **arguments), model.generate(batch, **arguments))
    sessions = decoder.forward.sessions.values()
    assert any(session.graphs for session in sessions)
    assert min(session.rows for session in sessions) < len(TEXTS)  # finished rows left the batch


@torch.no_grad()
@pytest.mark.parametrize("cell", representatives(FEW, BY_ROWS, whole=True), ids="-".join)
def test_logits_of_rows_of_different_lengths_equal_teacher_forcing(cell: Cell, make: Any) -> None:
    """Row r has r + 1 tokens. Wrong tokens are written after them and removed; then four tokens at a time."""
    model = make(*cell)
    batch = model.collator.batch_of_texts(TEXTS[:3])
    ids_BT = torch.randint(5, 60, (3, 10), generator=torch.Generator().manual_seed(1))
    expected_BTV = model.logits(replace(batch, labels_BT=ids_BT))
    state, first_BV = StaticForward(model).start(model.prefill(batch), 20)
    assert isinstance(state, StaticState)
    torch.testing.assert_close(first_BV, expected_BTV[:, 0], atol=2e-4, rtol=1e-4)
    rows_B, steps_4 = torch.arange(3), torch.arange(4)

    def advanced(ids_BQ: torch.Tensor, counts_BQ: torch.Tensor) -> torch.Tensor:
        return state.session.advance(ids_BQ, state.length + counts_BQ)

    for repeat in range(CAPTURED + 1):
        for step in range(3):
            done_B = rows_B.clamp(max=step)
            logits_BV = advanced(ids_BT[rows_B, done_B].unsqueeze(1), done_B.unsqueeze(1))[:, 0]
            torch.testing.assert_close(logits_BV, expected_BTV[rows_B, done_B + 1], atol=2e-4, rtol=1e-4)
        counts_BQ = rows_B.unsqueeze(1) + 1 + steps_4
        advanced(torch.full((3, 4), 9 + repeat), counts_BQ)
        logits_BQV = advanced(ids_BT.gather(1, counts_BQ), counts_BQ)
        wanted_BQV = torch.stack([expected_BTV[row, row + 2 : row + 6] for row in range(3)])
        torch.testing.assert_close(logits_BQV, wanted_BQV, atol=2e-4, rtol=1e-4)
    assert set(state.session.graphs) == {1, 4}


@pytest.mark.parametrize(("rows", "uses"), [(8, 3), (9, 24)])
def test_passes_over_few_rows_are_captured_sooner(make: Any, rows: int, uses: int) -> None:
    model = make("t5", "gpt2", "memory")
    model.generation_config.eos_token_id = None
    decoder = captured(model)
    batch = decoder.batch([TEXTS[0]] * rows)
    for tokens, graphs in ((uses, 0), (2, 1)):  # the first token takes no step
        decoder.generate(batch, max_new_tokens=tokens)
        (session,) = decoder.forward.sessions.values()
        assert len(session.graphs) == graphs


def test_a_session_is_reused(make: Any) -> None:
    """Prompts of similar length share buffers and graph; values of earlier prompts have no effect."""
    model = make("t5", "t5", "add")
    decoder = captured(model)
    for text in (TEXTS[0], TEXTS[1], TEXTS[0]):
        batch = decoder.batch([text])
        assert torch.equal(decoder.generate(batch, max_new_tokens=9), model.generate(batch, max_new_tokens=9))
    assert len(decoder.forward.sessions) == 1


def test_finished_rows_are_removed_from_the_computation(make: Any) -> None:
    model = make("t5", "gpt2", "cross_attention")
    forward = StaticForward(model)
    batch = model.collator.batch_of_texts(TEXTS)
    ends = end_at_different_steps(model, batch)
    lengths = lengths_of(model.generate(batch, max_new_tokens=LENGTH).tolist(), ends)
    sizes = []
    for step in stream(model, batch, settings(model, max_new_tokens=LENGTH), forward=forward):
        sizes.append(next(reversed(forward.sessions.values())).rows)
        assert len(step.rows_B) == sum(length >= len(sizes) for length in lengths)
    unfinished = [sum(length > done for length in lengths) for done in range(max(lengths))]
    assert all(rows <= size < 4 * rows for rows, size in zip(unfinished, sizes, strict=True))
    assert all(size.bit_count() == 1 for size in sizes)  # few sizes are captured
    assert sizes[0] > sizes[-1]
