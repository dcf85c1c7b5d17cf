"""The workload of a benchmark: prompts, batches and response lengths, in tokens of one tokenizer for all systems.

At lengths="test" each prompt of the test split is one batch, with as many response tokens as its reference has; larger
batches hold prompts whose references have similar lengths, with as many response tokens as their mean. At
lengths="grid" batch, prompt and response length are the same for every row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm2slm.config import BenchmarkConfig
from llm2slm.types import Example, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


@dataclass(frozen=True)
class Request:
    """One timed call: the prompts of a batch, and the response tokens of every row (at least 2)."""

    prompts: tuple[str, ...]
    response_tokens: int


@dataclass(frozen=True)
class Condition:
    """The requests whose times one speed row summarizes."""

    lengths: str  # test | grid
    batch: int
    prompt_tokens: float  # mean, in the first system's LLM tokens
    requests: tuple[Request, ...]

    @property
    def response_tokens(self) -> float:
        """Mean over requests."""
        return statistics.fmean(request.response_tokens for request in self.requests)


class Lengths:
    """Counts tokens by the LLM tokenizer of the first system (by its only tokenizer, if it has no LLM)."""

    def __init__(self, model: LLM2SLM) -> None:
        collator = model.collator
        self._tokenizer = collator.slm_tokenizer if collator.llm_tokenizer is None else collator.llm_tokenizer
        self._limit = collator.max_prompt_tokens

    def prompt(self, text: str) -> int:
        """Tokens of a prompt, special tokens included."""
        return len(self._tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])

    def read(self, text: str) -> int:
        """Tokens of a prompt after truncation (data.overlong=truncate; otherwise none is too long)."""
        return min(self.prompt(text), self._limit)

    def response(self, text: str) -> int:
        """Tokens of a response, its end token included."""
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return len(found["input_ids"]) + 1


def plan(first: LLM2SLM, examples: Sequence[Example], cfg: BenchmarkConfig) -> list[Condition]:
    """The conditions of a run, in tokens of the first system's LLM (of its only tokenizer, if it has no LLM).

    Raises:
        UserError: no examples, or a length of the grid that cannot be timed.
    """
    if not examples:
        raise UserError("benchmark: the test split is empty; give at least one example")
    if any(length < 2 for length in cfg.response_tokens):
        raise UserError(f"benchmark.response_tokens={cfg.response_tokens}: give lengths >= 2 (ms_per_token needs two)")
    if any(size < 1 for size in [*cfg.batch, *cfg.prompt_tokens]):
        raise UserError("benchmark.batch and benchmark.prompt_tokens: give numbers >= 1")
    if cfg.prompt_tokens and not any(example.prompt.strip() for example in examples):
        raise UserError("benchmark.prompt_tokens: all prompts are empty, so none can be lengthened; check data.source")
    count = Lengths(first)
    conditions = []
    if cfg.prompts > 0:
        chosen = examples[: cfg.prompts]
        lengths = statistics.fmean(count.read(example.prompt) for example in chosen)
        for batch in cfg.test_batch:
            conditions.append(Condition("test", batch, lengths, _at_own_lengths(chosen, batch, count.response)))
    for batch in cfg.batch:
        for wanted in cfg.prompt_tokens or (None,):
            if wanted is None:
                prompts = _median_prompts(examples, batch, count.prompt)
            else:
                prompts = [
                    cut_prompt([e.prompt for e in _from(examples, i)], wanted, count.prompt) for i in range(batch)
                ]
            lengths = statistics.fmean(count.read(prompt) for prompt in prompts)
            conditions += [
                Condition("grid", batch, lengths, (Request(tuple(prompts), tokens),)) for tokens in cfg.response_tokens
            ]
    if not conditions:
        raise UserError("benchmark: nothing to time; give benchmark.prompts > 0, or benchmark.response_tokens")
    return conditions


def _at_own_lengths(examples: Sequence[Example], batch: int, count: Callable[[str], int]) -> tuple[Request, ...]:
    """Requests with the lengths of the references; a last batch that is smaller is filled from the one before.

    Args:
        count: tokens of a response.
    """
    lengths = [max(2, count(example.target)) for example in examples]
    if batch == 1:
        return tuple(Request((e.prompt,), tokens) for e, tokens in zip(examples, lengths, strict=True))
    order = sorted(range(len(examples)), key=lambda i: lengths[i])
    order += order[-1:] * (batch - len(order))  # fewer prompts than rows: the last one is repeated
    starts = [*range(0, len(order) - batch + 1, batch)]
    if len(order) % batch:
        starts.append(len(order) - batch)
    groups = [order[start : start + batch] for start in starts]
    means = [round(statistics.fmean(lengths[i] for i in group)) for group in groups]
    return tuple(
        Request(tuple(examples[i].prompt for i in group), tokens) for group, tokens in zip(groups, means, strict=True)
    )


def cut_prompt(texts: Sequence[str], tokens: int, count: Callable[[str], int]) -> str:
    """`texts` joined, repeatedly if needed, and cut to `tokens` tokens, or to the nearest number below.

    `count` must be almost monotonic in the text's length; tokenizers are, up to a token at the cut.
    """
    text = texts[0]
    turn = 1
    while count(text) < tokens:
        text = f"{text} {texts[turn % len(texts)]}"
        turn += 1
    low, high = 0, len(text)  # binary search of the longest prefix with at most `tokens` tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= tokens else (low, middle - 1)
    return text[:low]


def _from(examples: Sequence[Example], start: int) -> list[Example]:
    start %= len(examples)
    return [*examples[start:], *examples[:start]]


def _median_prompts(examples: Sequence[Example], batch: int, count: Callable[[str], int]) -> list[str]:
    """The prompts closest to the median length (repeated if the split is smaller than the batch)."""
    lengths = {example.prompt: count(example.prompt) for example in examples}
    middle = statistics.median(lengths.values())
    nearest = sorted(lengths, key=lambda prompt: abs(lengths[prompt] - middle))
    return [nearest[i % len(nearest)] for i in range(batch)]
