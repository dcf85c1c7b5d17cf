"""transformers' speculative decoding of the LLM, for comparison: with the SLM alone as assistant, or by prompt lookup.

Both take one row at a time (transformers refuses a batch), and both are greedy here, so the response is the LLM's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from llm2slm.decoding.decoder import OneModelDecoder
from llm2slm.types import Batch

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import OnTokens
    from llm2slm.models.hybrid import LLM2SLM

LOOKED_UP = 10
"""Tokens of a candidate from the prompt; transformers' own example."""


class SpeculativeDecoder(OneModelDecoder):
    """`generate` of the LLM with an assistant, or with candidates from the prompt.

    Args:
        model: an LLM alone, without virtual tokens. assistant: an SLM alone with its tokenizer; None: prompt lookup.
    """

    most_rows = 1
    """Largest batch."""

    def __init__(self, model: LLM2SLM, assistant: LLM2SLM | None = None) -> None:
        self.model = model
        self.name = "transformers prompt lookup" if assistant is None else "transformers assisted generation"
        self.how: dict[str, Any] = (
            {"prompt_lookup_num_tokens": LOOKED_UP} if assistant is None else {"assistant_model": assistant.slm}
        )

    def generate(
        self,
        batch: Batch,
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """See `Decoder`."""
        slm, streamer = self.model.slm, None if on_tokens is None else _Streamer(on_tokens)
        ids_1T: Tensor = slm.generate(
            input_ids=batch.slm_ids_BQ,
            attention_mask=batch.slm_mask_BQ,
            generation_config=generation_config,
            streamer=streamer,
            **self.how,
            **arguments,
        )
        before = 1 if slm.config.is_encoder_decoder else batch.slm_ids_BQ.shape[1]
        return ids_1T[:, before:]


class _Streamer(BaseStreamer):
    """Passes the accepted tokens of each verification on. The first call has the prompt, which is left out."""

    def __init__(self, on_tokens: OnTokens) -> None:
        self.on_tokens, self.started = on_tokens, False

    def put(self, value: Tensor) -> None:
        ids_1N = value.reshape(1, -1)
        if self.started:
            self.on_tokens(torch.zeros(1, dtype=torch.int64), ids_1N, torch.tensor([ids_1N.shape[1]]))
        self.started = True

    def end(self) -> None:
        """The response is complete."""
