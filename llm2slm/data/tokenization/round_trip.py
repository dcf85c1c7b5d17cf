"""Detection of texts that a tokenizer loses: texts that differ from the decoding of their ids.

A model cannot generate a lost response. White space at both ends is ignored: sources and targets have none, and
predictions are stripped before a comparison.
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
"""Text of a row -> its bit in `Encoded.lost`: response and prompt under the SLM's tokenizer, and the prompt under the
LLM's tokenizer if it is another one."""

AROUND = 16
"""Characters shown on each side of the first difference of two texts."""


def marked(collator: Collator, rows: Sequence[Encoded], examples: Sequence[Example]) -> list[Encoded]:
    """The rows with `lost` set.

    Args:
        rows: result of `Collator.tokenized` for the examples, not truncated.
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
    """The decoding of one text of each row, decoded like predictions; None if the rows do not have this text."""
    if name == RESPONSE:
        return collator.decode([row.response for row in rows])
    if name == PROMPT and collator.last_token is not None:  # the SLM gets only the prompt's last token
        return None
    if name == PROMPT:
        return [_decoded(collator.slm_prompts, row.slm, row.slm_spans) for row in rows]
    if any(row.llm is None for row in rows):
        return None
    return [_decoded(collator.llm_prompts, row.llm or [], row.llm_spans) for row in rows]


def _decoded(prompts: PromptTokenizer, ids: list[int], spans: Spans | None) -> str:
    """The decoded prompt, without tokens that belong only to the frame."""
    if spans is not None:
        ids = [token for token, special in zip(ids, spans.special, strict=True) if not special]
    return str(prompts.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _survives(collator: Collator, example: Example, name: str, decoded: str) -> bool:
    if name == RESPONSE:
        return decoded.strip() == example.target.strip()
    prompts = collator.slm_prompts if name == PROMPT else collator.llm_prompts
    if prompts.frame:  # a token may cover the end of the frame and the start of the prompt
        return example.prompt.strip() in decoded
    return decoded.strip() == (example.prompt + prompts.mark).strip()


def difference(collator: Collator, example: Example, name: str) -> str:
    """The first difference of a text and its decoding, as "'a {b' is read back as 'a b'"."""
    (decoded,) = read_back(collator, collator.tokenized([example]), name) or [""]
    text, decoded = (example.target if name == RESPONSE else example.prompt).strip(), decoded.strip()
    pairs = enumerate(zip(text, decoded, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(text), len(decoded)))
    return f"{_excerpt(text, first)} is read back as {_excerpt(decoded, first)}"


def _excerpt(text: str, center: int) -> str:
    start, end = max(0, center - AROUND), min(len(text), center + AROUND)
    return f"{'...' * (start > 0)}{text[start:end]!r}{'...' * (end < len(text))}"


def counts(rows: Sequence[Encoded]) -> dict[str, int]:
    """Number of rows that lost each text."""
    return {name: sum(bool(row.lost & bit) for row in rows) for name, bit in TEXTS.items()}


def first_lost(rows: Sequence[Encoded], name: str) -> int | None:
    """The index of the first row that lost the text."""
    return next((row.index for row in rows if row.lost & TEXTS[name]), None)
