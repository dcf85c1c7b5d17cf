"""What a training is about to read, in figures: lengths in tokens, what is too long, what is there twice.

Texts count as the same where they are so to the letter (white space at their ends apart).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2slm.data.collate import Collator, Encoded
from llm2slm.types import Example

if TYPE_CHECKING:
    from rich.table import Table

COUNTS = {
    "rows": "rows",
    "overlong_prompts": "prompts too long",
    "overlong_responses": "responses too long",
    "empty": "responses that are empty",
    "lost_responses": "responses that the SLM's tokens cannot spell",
    "lost_prompts": "prompts that the SLM's tokens cannot spell",
    "lost_llm_prompts": "prompts that the LLM's tokens cannot spell",
    "dropped": "rows dropped",
    "pieces": "pieces that rows are split into",
    "repeated": "rows that are repeated",
    "in_train": "prompts that are in train",
}
ACCIDENTS = (
    "overlong_prompts", "overlong_responses", "empty", "lost_responses", "lost_prompts", "lost_llm_prompts", "dropped",
)  # fmt: skip
LENGTHS = {
    "prompt": "prompt tokens: median, 95 %, longest",
    "llm_prompt": "the LLM's prompt tokens",
    "response": "response tokens",
}
"""Counts and lengths by their key in a report, and what they are called; some are shown only if there are any."""

USUAL_TOKENS_PER_BYTE = 0.22
"""Tokens per byte of a text in UTF-8, under a tokenizer with tens of thousands of entries that was made for such text:
0.20 to 0.25 for English, and about as many for other scripts, whose characters take more bytes."""

FEW_BYTES = 256
"""Fewer of them say nothing about tokens per byte."""

MISSING = "–"


def of_tokens(rows: Sequence[Encoded], examples: Sequence[Example], collator: Collator) -> dict[str, Any]:
    """Lengths of texts in tokens, and tokens per byte, of all rows of a split before anything is cut."""
    return {"tokens": lengths(rows), "tokens_per_byte": tokens_per_byte(rows, examples, collator)}


def tokens_per_byte(rows: Sequence[Encoded], examples: Sequence[Example], collator: Collator) -> dict[str, float]:
    """Tokens per byte (UTF-8) of the responses and of the prompts, where they have enough to tell.

    What stands around a text does not count.
    """
    prompts = sum(len(example.prompt.encode("utf-8", "surrogatepass")) for example in examples)
    responses = sum(len(example.target.encode("utf-8", "surrogatepass")) for example in examples)
    counted = {
        "prompt": (sum(len(row.slm) - collator.slm_prompts.overhead for row in rows), prompts),
        "response": (sum(len(row.response) - 1 for row in rows), responses),
    }
    if rows and all(row.llm is not None for row in rows):
        counted["llm_prompt"] = sum(len(row.llm or ()) - collator.llm_prompts.overhead for row in rows), prompts
    return {key: round(tokens / size, 4) for key, (tokens, size) in counted.items() if size >= FEW_BYTES}


def lengths(rows: Sequence[Encoded]) -> dict[str, dict[str, int]]:
    """Median, 95th percentile (so many or fewer tokens have 95 % of the rows) and maximum of each length."""
    found = {"prompt": [len(row.slm) for row in rows]}
    if any(row.llm is not None for row in rows):
        found["llm_prompt"] = [len(row.llm or ()) for row in rows]
    found["response"] = [len(row.response) for row in rows]
    return {key: _spread(values) for key, values in found.items()}


def _spread(values: Sequence[int]) -> dict[str, int]:
    median, p95, most = np.percentile(values, (50, 95, 100), method="inverted_cdf").tolist()
    return {"median": int(median), "p95": int(p95), "max": int(most)}


def repeated(examples: Sequence[Example]) -> int:
    """Rows that were there before: the same prompt with the same target."""
    return len(examples) - len({(example.prompt, example.target) for example in examples})


def empty(examples: Iterable[Example]) -> int:
    """Rows whose response is no text: they teach to say nothing."""
    return sum(not example.target for example in examples)


def seen(examples: Iterable[Example], training: Iterable[Example]) -> int:
    """Rows whose prompt is also one of the training's; of rows without a source, whose text is."""

    def key(example: Example) -> tuple[str, str]:
        return example.prompt, "" if example.source else example.target

    known = {key(example) for example in training}
    return sum(key(example) in known for example in examples)


def table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """The report of a data module, a column for each split; lines of what did not happen are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    found = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    found.add_column("data")
    for split, told in report.items():
        found.add_column(f"{split}, first rows" if told.get("streamed") else split, justify="right")
    for name, cells in _lines(report):
        found.add_row(name, *map(Text, cells))
    return found


def _lines(report: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Name and figures of each line."""
    for key, name in COUNTS.items():
        counts = [told.get(key) for told in report.values()]
        if any(counts) or (key not in ACCIDENTS and counts != [None] * len(counts)):
            yield name, [MISSING if count is None else f"{count:,}" for count in counts]
    for key, name in LENGTHS.items():
        spreads = [told["tokens"].get(key) for told in report.values()]
        if any(spreads):
            yield name, [MISSING if one is None else " ".join(f"{n:,}" for n in one.values()) for one in spreads]
