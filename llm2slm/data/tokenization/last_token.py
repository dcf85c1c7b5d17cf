"""Mapping of the LLM's last prompt token to an SLM vocabulary that is a subset of the LLM's (conditioning `kv`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm2slm.types import UserError


class LastToken:
    """Maps the LLM's last prompt token to the SLM's vocabulary.

    Raises:
        UserError: the SLM's vocabulary is not a subset of the LLM's.
    """

    def __init__(self, llm_tokenizer: Any, slm_tokenizer: Any) -> None:
        self.llm_tokenizer, self.slm_tokenizer = llm_tokenizer, slm_tokenizer
        self.vocabulary: dict[str, int] = slm_tokenizer.get_vocab()
        if not is_cut(slm_tokenizer, llm_tokenizer):
            raise UserError(
                "model.conditioning=kv: the SLM's vocabulary has entries that are not in the LLM's, so the LLM's last "
                "prompt token cannot be mapped to it; use the LLM's tokenizer, or one cut from it"
            )

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """The SLM's ids of the last of the LLM's token ids; several if the SLM's vocabulary lacks it."""
        name = self.llm_tokenizer.convert_ids_to_tokens(ids[-1])
        if name in self.vocabulary:
            return [self.vocabulary[name]]
        pieces = self.slm_tokenizer.backend_tokenizer.model.tokenize(name)
        return [piece.id for piece in pieces]


def is_cut(slm_tokenizer: Any, llm_tokenizer: Any) -> bool:
    """Whether the SLM's vocabulary, except its added tokens, is a subset of the LLM's."""
    added, known = set(slm_tokenizer.get_added_vocab()), set(llm_tokenizer.get_vocab())
    return set(slm_tokenizer.get_vocab()) - added <= known
