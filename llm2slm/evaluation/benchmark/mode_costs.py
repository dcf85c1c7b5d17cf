"""The cost of lossless and of cascade decoding, from model configs alone, in the terms of `costs.py`.

Lossless: the hybrid drafts n tokens, and the LLM verifies them in one forward pass over n + 1 positions (the last token
of the response and the draft). It accepts a of them and adds one token, so that a response of T tokens takes
T / (a + 1) verifications. prefill contains the first one, which gives the first tokens.

Cascade: the hybrid generates every response, and the LLM generates a share of them anew.

The encoding is shared if the LLM does not compute again what it computed as the hybrid's encoder: the encoder's output
of an encoder-decoder, the lower blocks of a decoder-only LLM with their cache. The weights of the LLM are held in
memory once in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm2slm.evaluation.benchmark.costs import Cost, Prepared, Work, decoding_passes, first_step
from llm2slm.models.families import decoder_stack, encoder_stack, is_encoder_decoder, whole_tables
from llm2slm.models.matrix_shapes import Stack

SMALLEST, LARGEST = 1e-9, 1 - 1e-9
"""Bounds of an acceptance rate in the search for it."""


@dataclass(frozen=True)
class Drafting:
    """How the hybrid drafts, means over the verifications of a response.

    Attributes:
        drafted: n, tokens of a draft. accepted: a, at most n.
        whole: share of the verifications that accept the whole draft (the SLM then processes two tokens in the first
            step of the next draft). None: that of independent tokens, each accepted at the same rate.
        slm_tokens: tokens of the SLM per token of the LLM.
    """

    drafted: float
    accepted: float
    whole: float | None = None
    slm_tokens: float = 1

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.drafted:
            raise ValueError(f"accepted={self.accepted}: must be between 0 and drafted={self.drafted}")

    def within(self, tokens: float) -> Drafting:
        """The same for a response of so many tokens, which needs no longer draft than all tokens but one."""
        drafted = min(self.drafted, tokens - 1)
        return replace(self, drafted=drafted, accepted=min(self.accepted, drafted))

    @property
    def accepted_whole(self) -> float:
        """`whole`, or its estimate: with rate p, a = p + ... + p^n, and p^n of the drafts are accepted whole."""
        if self.whole is not None:
            return self.whole
        if self.accepted == self.drafted:
            return 1.0
        low, high = SMALLEST, LARGEST
        while high - low > SMALLEST:
            rate = (low + high) / 2
            low, high = (rate, high) if _accepted(rate, self.drafted) < self.accepted else (low, rate)
        return float(low**self.drafted)


def _accepted(rate: float, drafted: float) -> float:
    """Mean number of accepted tokens of a draft whose tokens are accepted at a rate, up to the first that is not."""
    return float(rate * (1 - rate**drafted) / (1 - rate))


def lossless_cost(
    hybrid: Prepared,
    llm_config: Mapping[str, Any],
    llm_tokens: float,
    response_tokens: float,
    drafting: Drafting,
    *,
    llm_layers: int | None = None,
    shared: bool = True,
    bytes_per_weight: float = 4,
    bytes_per_value: float | None = None,
) -> Cost:
    """Cost of one response that the hybrid drafts and the LLM verifies.

    Args:
        hybrid: the hybrid after its first step (`costs.prepared`).
        llm_config: of the whole LLM; llm_tokens: P, the prompt under its tokenizer.
        response_tokens: T, at least 1, tokens of the LLM.
        llm_layers: blocks of the LLM that the hybrid runs; None: all blocks of its encoder.
        shared: the encoding is shared.
        bytes_per_weight, bytes_per_value: as in `costs.generation_cost`.

    Raises:
        UserError: a model type that is unknown or does not generate.
    """
    drafting = drafting.within(response_tokens)
    stack, n, grown = decoder_stack(llm_config), drafting.drafted, drafting.accepted + 1
    later = response_tokens / grown - 1  # verifications after the first
    middle = (later + 1) / 2 * grown  # tokens verified before a later verification, mean
    decoder_only = not is_encoder_decoder(llm_config)
    start = llm_tokens if decoder_only else 1  # positions before the first draft, the start token included
    own, memory = (0, 0) if decoder_only else (1, llm_tokens)
    encoding = _encoding(llm_config, llm_tokens, llm_layers if shared else 0)
    first = _verification(stack, n + own, n + 1, start + n, memory)
    rest = decoding_passes(stack, later, n + 1, start + n + middle, memory) if later > 0 else ()
    keys_values = [] if decoder_only else first_step(stack, 1, 0, llm_tokens)[:-1]
    drafts = _drafts(hybrid, drafting, later, middle)
    weights = hybrid.weights - hybrid.llm_weights + _held(llm_config)
    slm_end = hybrid.slm.cache(hybrid.keys + response_tokens * drafting.slm_tokens - 1, hybrid.attended)
    return Cost(
        (*hybrid.works, *encoding, *keys_values, *drafts[0], first),
        (*drafts[1], *rest),
        weights,
        slm_end + stack.cache(start + response_tokens - 1, memory),
        bytes_per_weight,
        bytes_per_weight if bytes_per_value is None else bytes_per_value,
    )


def cascade_cost(
    hybrid: Prepared,
    llm_config: Mapping[str, Any],
    llm_tokens: float,
    response_tokens: float,
    rewritten: float,
    *,
    llm_layers: int | None = None,
    shared: bool = True,
    slm_tokens: float = 1,
    bytes_per_weight: float = 4,
    bytes_per_value: float | None = None,
) -> Cost:
    """Expected cost of one response that the hybrid generates, and for a share of the prompts the LLM again.

    Each phase is the sum of those of both models. Arguments and errors as of `lossless_cost`; rewritten: the share,
    from 0 to 1; slm_tokens: tokens of the SLM per token of the LLM.
    """
    drawn = hybrid.response(response_tokens * slm_tokens, bytes_per_weight, bytes_per_value)
    anew = after_encoding(llm_config, llm_tokens, llm_layers, shared=shared).response(response_tokens)
    return Cost(
        drawn.prefill + tuple(replace(work, rows=rewritten) for work in anew.prefill),
        drawn.decode + tuple(replace(work, rows=rewritten) for work in anew.decode),
        hybrid.weights - hybrid.llm_weights + _held(llm_config),
        max(drawn.cache, anew.cache),  # one after the other
        drawn.bytes_per_weight,
        drawn.bytes_per_value,
    )


def after_encoding(
    llm_config: Mapping[str, Any], llm_tokens: float, llm_layers: int | None, *, shared: bool = True
) -> Prepared:
    """The LLM before its greedy response to a prompt that it has encoded as the hybrid's encoder."""
    stack = decoder_stack(llm_config)
    works = _encoding(llm_config, llm_tokens, llm_layers if shared else 0)
    if is_encoder_decoder(llm_config):
        steps, keys, attended = first_step(stack, 1, 0, llm_tokens), 1.0, llm_tokens
    else:
        steps, keys, attended = [Work(1, 0, 2 * stack.head, stack.head)], llm_tokens, 0
    return Prepared((*works, *steps), stack, keys, attended, _held(llm_config))


def _encoding(config: Mapping[str, Any], tokens: float, done: int | None) -> tuple[Work, ...]:
    """The blocks that process the prompt, without the first `done` of them; None: all are done."""
    encoder = encoder_stack(config)
    left = 0 if done is None else encoder.layers - done
    # of the two matrices around the blocks, the one after them
    upper = replace(encoder, layers=left, around=encoder.around // 2 if done else encoder.around)
    return (Work(1, left, upper.flops(tokens, tokens), upper.weights),) if left else ()


def _verification(stack: Stack, new: float, logits: float, keys: float, memory: float) -> Work:
    """One forward pass over `new` positions that gives `logits` distributions."""
    flops, cache = stack.flops(new, keys, memory, logits), stack.cache(keys, memory)
    return Work(1, stack.layers, flops, stack.weights + stack.head, cache)


def _drafts(
    hybrid: Prepared, drafting: Drafting, later: float, middle: float
) -> tuple[tuple[Work, ...], tuple[Work, ...]]:
    """The SLM's steps: those of the first draft after its first token, and those of all later drafts.

    Args:
        later: number of later drafts; middle: mean number of LLM tokens before one of them.
    """
    n, ratio = drafting.drafted * drafting.slm_tokens, drafting.slm_tokens
    first = hybrid.steps(n - 1, hybrid.keys + n / 2)
    keys = hybrid.keys + middle * ratio - 1 + (n + 1) / 2
    steps = hybrid.steps(later * n, keys)
    if not steps:
        return first, ()
    twice = later * drafting.accepted_whole * hybrid.slm.flops(1, hybrid.keys + middle * ratio, hybrid.attended)
    return first, (replace(steps[0], flops=steps[0].flops + twice),)


def _held(config: Mapping[str, Any]) -> float:
    """Elements of a whole LLM."""
    stack = decoder_stack(config)
    encoder = encoder_stack(config).weights if is_encoder_decoder(config) else 0
    return encoder + stack.weights + stack.memory_weights + whole_tables(config)
