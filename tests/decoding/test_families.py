"""Captured steps of every family, as an LLM system: they equal `generate` of transformers, or the reason is stated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deep_models import ONE_STACK, TWO_STACKS, write
from sampling import representatives
from test_loop import TEXTS

from llm2slm.config import DataConfig, LLMConfig
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.decoding.static import StaticForward, misfit
from llm2slm.models.build import build_llm
from llm2slm.testing import tiny_tokenizer

MISFITS = {
    "gpt_neo": "transformers does not support a static cache for gpt_neo",
    "longt5": "transformers does not support a static cache for longt5",
    "bloom": "the steps of a bloom over buffers fail (ValueError: too many values to unpack (expected 2))",
    "m2m_100": "the steps of a m2m_100 over buffers give other logits",
}
LENGTH = 14


@pytest.mark.parametrize("family", representatives(ONE_STACK + TWO_STACKS, ["gemma3", "falcon", "umt5", "bloom"]))
def test_greedy_responses_of_every_family_equal_generate(family: str, tmp_path: Path) -> None:
    """Prompts longer than the sliding windows, and padding."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write(family, tmp_path / "llm", vocab_size=len(tiny_tokenizer()))
    limits = DataConfig(max_prompt_tokens=40, max_response_tokens=20)
    model = build_llm(LLMConfig(name=str(tmp_path / "llm"), tokenizer=str(tmp_path / "tokenizer")), limits)
    assert misfit(model) == MISFITS.get(family)
    if family in MISFITS:
        return
    model.generation_config.eos_token_id = None
    batch = model.collator.batch_of_texts(TEXTS)
    assert int(batch.slm_mask_BQ.sum(1).max()) > 5
    settings = {"max_new_tokens": LENGTH, "no_repeat_ngram_size": 1}
    expected = model.generate(batch, **settings)
    decoder = LoopDecoder(model, StaticForward(model), "captured")
    assert torch.equal(decoder.generate(batch, **settings), expected)
    assert len(set(expected[0].tolist())) == LENGTH
