"""The state of a generation in progress."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llm2slm.models.prompt import Prompt


@dataclass(frozen=True)
class DecodeState:
    """Prompt and response of the rows that are not finished, as far as the SLM has processed them.

    Attributes:
        rows_B: index of each row in the batch that was prefilled.
        cache: transformers' cache: keys and values of the C processed positions, and of those that cross-attention
            attends to.
        mask_BC: 1 at real positions of a decoder-only SLM's sequence; None for an encoder-decoder, whose response has
            no padding before it.
        attended: arguments of each forward pass that hold the states of cross-attention and their mask.
        prompt: of these rows.
    """

    rows_B: Tensor
    cache: Any
    mask_BC: Tensor | None
    prompt: Prompt
    attended: dict[str, Any]

    def keep(self, kept_K: Tensor) -> DecodeState:
        """The state of some of its rows, or of several copies of each. The cache is changed in place.

        Args:
            kept_K: positions in `rows_B`, in ascending order.
        """
        self.cache.batch_select_indices(kept_K)
        return replace(
            self,
            rows_B=self.rows_B[kept_K],
            mask_BC=None if self.mask_BC is None else self.mask_BC[kept_K],
            attended={name: _rows(value, kept_K) for name, value in self.attended.items()},
            prompt=self.prompt.rows(kept_K),
        )

    def reordered(self, rows_B: Tensor) -> DecodeState:
        """The state in which row b continues row rows_B[b], which has the same prompt. The cache is changed in place.

        Args:
            rows_B: positions in `rows_B` of the state.
        """
        self.cache.reorder_cache(rows_B)
        return self


def _rows(value: Any, kept_K: Tensor) -> Any:
    """Rows of a tensor, or of every tensor of a transformers output."""
    if isinstance(value, Tensor):
        return value[kept_K]
    return type(value)(**{name: _rows(each, kept_K) for name, each in value.items()})


def all_rows(rows: int, device: torch.device) -> Tensor:
    """The `rows_B` of a whole batch."""
    return torch.arange(rows, device=device)
