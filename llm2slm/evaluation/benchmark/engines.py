"""Engines: how a benchmark makes a system generate, behind a protocol that any decoding loop can satisfy.

The benchmark times `prefill` and `stream`. `step` serves interactive use, and checks that an engine's phases add up to
its stream. An engine needs no registration: `time_systems` takes it by system name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from llm2slm.types import Batch

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


class Engine(Protocol):
    """Greedy generation that ignores end tokens, with a key-value cache, for every row of a batch alike.

    All three methods give the same token ids: `prefill` and T - 1 times `step` those of `stream` with T tokens.
    """

    @property
    def name(self) -> str:
        """As results state it under `decoding`."""
        ...

    def prefill(self, model: LLM2SLM, batch: Batch) -> tuple[Tensor, Any]:
        """Everything up to and including the first response token: its ids (B x 1), and a state for `step`."""
        ...

    def step(self, state: Any) -> Tensor:
        """The ids of the next token of every row (B x 1); updates the state."""
        ...

    def stream(self, model: LLM2SLM, batch: Batch, tokens: int) -> Iterator[Tensor]:
        """Prefill and decoding of exactly `tokens` tokens: their ids in order, in parts (B x n, n >= 1)."""
        ...


class GenerateEngine:
    """transformers' `generate`, which gives a response as a whole."""

    name = "transformers generate, greedy"

    def prefill(self, model: LLM2SLM, batch: Batch) -> tuple[Tensor, Any]:
        """See `Engine`; the state is what `step` generates again."""
        first_B1 = self._generate(model, batch, 1)
        return first_B1, [model, batch, 1]

    def step(self, state: Any) -> Tensor:
        """See `Engine`. `generate` keeps no cache between calls: the response is generated again, one token longer."""
        state[2] += 1
        return self._generate(*state)[:, -1:]

    def stream(self, model: LLM2SLM, batch: Batch, tokens: int) -> Iterator[Tensor]:
        """See `Engine`; a single part."""
        yield self._generate(model, batch, tokens)

    @staticmethod
    def _generate(model: LLM2SLM, batch: Batch, tokens: int) -> Tensor:
        ids_BT: Tensor = model.generate(
            batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1
        )
        return ids_BT


def generated(engine: Engine, model: LLM2SLM, batch: Batch, tokens: int) -> Tensor:
    """The ids of a whole stream (B x T)."""
    return torch.cat(list(engine.stream(model, batch, tokens)), dim=1)
