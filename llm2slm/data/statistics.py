"""Statistics of the data before training: lengths in tokens, over-long rows, repeated rows, overlap with training rows.

Texts are compared exactly, except for white space at their ends.
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
    "lost_responses": "responses lossy under the SLM's tokenizer",
    "lost_prompts": "prompts lossy under the SLM's tokenizer",
    "lost_llm_prompts": "prompts lossy under the LLM's tokenizer",
    "dropped": "rows dropped",
    "pieces": "pieces that rows are split into",
    "repeated": "rows that are repeated",
    "in_train": "prompts that are in train",
}
PROBLEMS = (
    "overlong_prompts", "overlong_responses", "empty", "lost_responses", "lost_prompts", "lost_llm_prompts", "dropped",
)  # fmt: skip
LENGTHS = {
    "prompt": "prompt tokens",
    "llm_prompt": "the LLM's prompt tokens",
    "response": "response tokens",
}
"""Keys of counts and lengths in a report, and their titles. Those in `PROBLEMS` are shown only if they are not 0."""
SPREAD = "median, 95 %, longest"
"""The figures of a length, named in the first line of lengths."""

USUAL_TOKENS_PER_BYTE = 0.22
"""Tokens per UTF-8 byte with a tokenizer of tens of thousands of entries that was trained on text of the same language:
0.20 to 0.25 for English, and about the same for other scripts, whose characters have more bytes."""

FEW_BYTES = 256
"""Minimum number of bytes for an estimate of tokens per byte."""

MISSING = "–"


def of_tokens(rows: Sequence[Encoded], examples: Sequence[Example], collator: Collator) -> dict[str, Any]:
    """Lengths in tokens, and tokens per byte, of all rows of a split before truncation.

    The SLM's prompts are left out if each is the last token of the LLM's.
    """
    sizes, fineness = lengths(rows), tokens_per_byte(rows, examples, collator)
    if collator.last_token is not None:
        sizes.pop("prompt")
        fineness.pop("prompt", None)
    return {"tokens": sizes, "tokens_per_byte": fineness}


def tokens_per_byte(rows: Sequence[Encoded], examples: Sequence[Example], collator: Collator) -> dict[str, float]:
    """Tokens per UTF-8 byte of responses and prompts with at least `FEW_BYTES`; the frame of prompts is not counted."""
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
    """Median, 95th percentile and maximum of each length in tokens."""
    found = {"prompt": [len(row.slm) for row in rows]}
    if any(row.llm is not None for row in rows):
        found["llm_prompt"] = [len(row.llm or ()) for row in rows]
    found["response"] = [len(row.response) for row in rows]
    return {key: _spread(values) for key, values in found.items()}


def _spread(values: Sequence[int]) -> dict[str, int]:
    median, p95, most = np.percentile(values, (50, 95, 100), method="inverted_cdf").tolist()
    return {"median": int(median), "p95": int(p95), "max": int(most)}


def repeated(examples: Sequence[Example]) -> int:
    """Number of rows whose prompt and target occur in an earlier row."""
    return len(examples) - len({(example.prompt, example.target) for example in examples})


def empty(examples: Iterable[Example]) -> int:
    """Number of rows with an empty response."""
    return sum(not example.target for example in examples)


def seen(examples: Iterable[Example], training: Iterable[Example]) -> int:
    """Number of rows whose prompt (of rows without a source: whose target) is in the training rows."""

    def key(example: Example) -> tuple[str, str]:
        return example.prompt, "" if example.source else example.target

    known = {key(example) for example in training}
    return sum(key(example) in known for example in examples)


def table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """The report of a `TokenizedCorpus`, one column for each split, without lines of `PROBLEMS` that are 0."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    found = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    found.add_column("data")
    for split, values in report.items():
        found.add_column(f"{split}, first rows" if values.get("streamed") else split, justify="right")
    for name, cells in _lines(report):
        found.add_row(name, *map(Text, cells))
    return found


def _lines(report: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Title and values of each line."""
    for key, name in COUNTS.items():
        counts = [values.get(key) for values in report.values()]
        if any(counts) or (key not in PROBLEMS and counts != [None] * len(counts)):
            yield name, [MISSING if count is None else f"{count:,}" for count in counts]
    figures = f": {SPREAD}"
    for key, name in LENGTHS.items():
        spreads = [values["tokens"].get(key) for values in report.values()]
        if any(spreads):
            shown = [MISSING if one is None else " ".join(f"{n:,}" for n in one.values()) for one in spreads]
            yield f"{name}{figures}", shown
            figures = ""
