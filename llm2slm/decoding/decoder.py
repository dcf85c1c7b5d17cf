"""Decoders: how the responses to a batch of prompts are generated, behind one protocol.

Commands and benchmark use any of them alike; `choose.decoder` makes one from its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from llm2slm.models.slm import end_tokens
from llm2slm.types import Batch, Reps, UserError

if TYPE_CHECKING:
    from llm2slm.decoding.prompt_cache import PromptCache
    from llm2slm.models.hybrid import LLM2SLM

OnTokens = Callable[[Tensor, Tensor, Tensor], None]
"""(rows_K, ids_KN, counts_K): next tokens of some rows of the batch, of row k the first counts_K[k] of ids_KN[k]."""


class Decoder(Protocol):
    """Generates responses. A decoder, and all decoders of one model, are used by one thread at a time.

    Attributes:
        name: as results state it under `decoding`.
        model: the system whose responses they are: its generation config applies.
        streams: whether `on_tokens` is called before a response is complete.
        token_by_token: whether each token takes one forward pass of the model, as the cost model assumes.
    """

    name: str
    model: LLM2SLM
    streams: bool
    token_by_token: bool

    def batch(self, texts: Sequence[str]) -> Any:
        """The input of `generate` for prompts, on the model's device."""
        ...

    def generate(
        self,
        batch: Any,
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Responses to a batch: ids_BT for `decode`, padded on the right, as `LLM2SLM.generate` returns them.

        Args:
            batch: from `batch`.
            generation_config, arguments: as for transformers' `generate`.
            on_tokens: called with tokens as soon as they are known, first token first.

        Raises:
            UserError: the decoder does not support a setting.
        """
        ...

    def decode(self, ids_BT: Tensor) -> list[str]:
        """The texts of responses that `generate` returned."""
        ...

    @property
    def ends(self) -> set[int]:
        """The ids that end a response of `generate`."""
        ...


class OneModelDecoder:
    """What decoders have in common whose ids are all of `model`."""

    model: LLM2SLM
    streams = True
    token_by_token = False

    def batch(self, texts: Sequence[str]) -> Any:
        """See `Decoder`; here a `Batch`."""
        return self.model.collator.batch_of_texts(list(texts)).to(self.model.device)

    def decode(self, ids_BT: Tensor) -> list[str]:
        """See `Decoder`."""
        return self.model.collator.decode(ids_BT)

    @property
    def ends(self) -> set[int]:
        """See `Decoder`."""
        return set(end_tokens(self.model.generation_config))


class GenerateDecoder(OneModelDecoder):
    """transformers' `generate`.

    Args:
        model: any system.

    Attributes:
        prompts: representations of the last prompts; None (the default): every prompt is encoded.
    """

    name = "transformers generate"
    token_by_token = True

    def __init__(self, model: LLM2SLM) -> None:
        self.model = model
        self.prompts: PromptCache | None = None

    def reps(self, batch: Batch) -> Reps | None:
        """The LLM's representations of a batch's prompts, from the cache of them; None without one."""
        return None if self.prompts is None else self.prompts.reps(batch)

    def generate(
        self,
        batch: Batch,
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """See `Decoder`."""
        if on_tokens is not None:
            given = self.model.generation_config if generation_config is None else generation_config
            arguments |= streamed(on_tokens, arguments.get("num_beams") or given.num_beams)
        ids_BT: Tensor = self.model.generate(batch, generation_config, reps=self.reps(batch), **arguments)
        return ids_BT


def streamed(on_tokens: OnTokens, num_beams: int | None) -> dict[str, Any]:
    """The argument of transformers' `generate` with which tokens are passed on.

    Raises:
        UserError: there are several beams, of which none is final before the end.
    """
    if num_beams is not None and num_beams > 1:
        raise UserError(f"num_beams={num_beams}: beam search has no tokens to stream before its end; use num_beams=1, "
                        "or leave on_tokens out")  # fmt: skip
    return {"streamer": _Streamer(on_tokens)}


class _Streamer(BaseStreamer):
    """Passes each step's tokens on. transformers calls it with the prompt first, which is not part of the response."""

    def __init__(self, on_tokens: OnTokens) -> None:
        self.on_tokens, self.started = on_tokens, False

    def put(self, value: Tensor) -> None:
        if self.started:
            self.on_tokens(torch.arange(len(value)), value.reshape(-1, 1), torch.ones(len(value), dtype=torch.int64))
        self.started = True

    def end(self) -> None:
        """The response is complete."""


def generate_text(decoder: Decoder, texts: Sequence[str], batch_size: int = 32, **arguments: Any) -> list[str]:
    """Responses to texts, in order; as `LLM2SLM.generate_text`.

    Args:
        texts: prompts as in training, prefix included.
    """
    responses: list[str] = []
    for start in range(0, len(texts), batch_size):
        ids_BT = decoder.generate(decoder.batch(texts[start : start + batch_size]), **arguments)
        responses += decoder.decode(ids_BT)
    return responses
