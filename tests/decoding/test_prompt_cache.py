"""A repeated prompt is encoded once, and has the representations of the first time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_loop import TEXTS

from llm2slm.decoding.prompt_cache import PromptCache
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Control


class Counted:
    """Counts the prompts that a model's encoder runs on."""

    def __init__(self, model: LLM2SLM) -> None:
        self.rows: list[int] = []
        model.encoder.register_forward_hook(lambda _, args, __: self.rows.append(len(args[0])))


@pytest.mark.parametrize(
    ("llm", "slm", "mode"), [("t5", "t5", "add"), ("gpt2", "gpt2", "kv"), ("llama", "t5", "memory")]
)
def test_cached_representations_equal_those_of_the_encoder(llm: str, slm: str, mode: str, make: Any) -> None:
    """With other paddings and in any order; only new prompts are encoded."""
    model = make(llm, slm, mode)
    cache, counted = PromptCache(model, 8), Counted(model)
    for texts, encoded in ((TEXTS[:2], 2), (TEXTS[1:2], 0), ([TEXTS[2], TEXTS[0], TEXTS[2]], 1), (TEXTS, 0)):
        batch = model.collator.batch_of_texts(texts)
        counted.rows.clear()
        found = cache.reps(batch)
        assert sum(counted.rows) == encoded
        expected = model.represent(batch)
        assert torch.equal(found.mask_BP, expected.mask_BP)
        torch.testing.assert_close(found.reps_BPE, expected.reps_BPE, atol=2e-5, rtol=1e-4)
    assert (cache.hits, cache.misses) == (6, 3)


def test_the_least_recently_used_prompt_is_dropped(make: Any) -> None:
    model = make("t5", "t5", "add")
    cache = PromptCache(model, 2)
    for text in (TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[0], TEXTS[1]):
        cache.reps(model.collator.batch_of_texts([text]))
    assert (cache.hits, cache.misses, len(cache.kept)) == (2, 4, 2)
    cache.reps(model.collator.batch_of_texts(TEXTS))  # more than fit
    assert len(cache.kept) == 2


def test_prompts_of_controls_are_not_cached(make: Any) -> None:
    model = make("t5", "t5", "add")
    assert PromptCache.fits(model)
    model.control = Control.shuffled
    assert not PromptCache.fits(model)
