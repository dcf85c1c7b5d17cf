"""Which texts a tokenizer gives back: what is decoded from their ids is the text again, or something was lost.

A response that is not given back cannot be written by the model that is trained on it. White space at both ends does
not count: sources and targets have none, and answers are stripped where they are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llm2slm.data.collate import Collator, Encoded
from llm2slm.data.tokenization.align import Spans
from llm2slm.data.tokenization.prompts import PromptTokenizer
from llm2slm.types import Example

RESPONSE, PROMPT, LLM_PROMPT = "response", "prompt", "llm_prompt"
TEXTS = {RESPONSE: 1, PROMPT: 2, LLM_PROMPT: 4}
"""The texts of a row, each with its bit in `Encoded.lost`: the response and the prompt under the SLM's tokenizer, and
the prompt under the LLM's where that is another."""

AROUND = 16
"""Characters that are shown on each side of the place where two texts begin to differ."""


def marked(collator: Collator, rows: Sequence[Encoded], examples: Sequence[Example]) -> list[Encoded]:
    """The rows, each with `lost` set.

    Args:
        rows: as `Collator.tokenized` gives them for the examples; none of them cut.
    """
    decoded = {name: read_back(collator, rows, name) for name in TEXTS}
    found = []
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        lost = 0
        for name, texts in decoded.items():
            lost |= 0 if texts is None or _survives(collator, example, name, texts[i]) else TEXTS[name]
        found.append(replace(row, lost=lost))
    return found


def read_back(collator: Collator, rows: Sequence[Encoded], name: str) -> list[str] | None:
    """What is decoded from the ids of a text of each row, as predictions are decoded; None where rows have no such."""
    if name == RESPONSE:
        return collator.decode([row.response for row in rows])
    if name == PROMPT and collator.last_token is not None:  # of the prompt the SLM reads that token alone
        return None
    if name == PROMPT:
        return [_decoded(collator.slm_prompts, row.slm, row.slm_spans) for row in rows]
    if any(row.llm is None for row in rows):
        return None
    return [_decoded(collator.llm_prompts, row.llm or [], row.llm_spans) for row in rows]


def _decoded(prompts: PromptTokenizer, ids: list[int], spans: Spans | None) -> str:
    """The text of a prompt's ids, without what only the frame has."""
    if spans is not None:
        ids = [token for token, special in zip(ids, spans.special, strict=True) if not special]
    return str(prompts.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _survives(collator: Collator, example: Example, name: str, decoded: str) -> bool:
    if name == RESPONSE:
        return decoded.strip() == example.target.strip()
    prompts = collator.slm_prompts if name == PROMPT else collator.llm_prompts
    if prompts.frame:  # a token may hold the last characters of the frame and the first ones of the prompt
        return example.prompt.strip() in decoded
    return decoded.strip() == (example.prompt + prompts.mark).strip()


def difference(collator: Collator, example: Example, name: str) -> str:
    """Where a text and what is read back of it begin to differ, in words, as "'a {b' is read back as 'a b'"."""
    (decoded,) = read_back(collator, collator.tokenized([example]), name) or [""]
    text, decoded = (example.target if name == RESPONSE else example.prompt).strip(), decoded.strip()
    pairs = enumerate(zip(text, decoded, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(text), len(decoded)))
    return f"{_excerpt(text, place)} is read back as {_excerpt(decoded, place)}"


def _excerpt(text: str, place: int) -> str:
    start, end = max(0, place - AROUND), min(len(text), place + AROUND)
    return f"{'...' * (start > 0)}{text[start:end]!r}{'...' * (end < len(text))}"


def counts(rows: Sequence[Encoded]) -> dict[str, int]:
    """How many rows lost which text."""
    return {name: sum(bool(row.lost & bit) for row in rows) for name, bit in TEXTS.items()}


def first_lost(rows: Sequence[Encoded], name: str) -> int | None:
    """The number of the first row that lost that text."""
    return next((row.index for row in rows if row.lost & TEXTS[name]), None)
