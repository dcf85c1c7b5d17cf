"""Alignment of two tokenizations of one text by character offsets: weights of the LLM tokens for each SLM token.

Rules for the weights of an SLM token q over the LLM tokens p:
1. q shares characters with some p: the mean over the shared characters. A character counts for the p that covers it,
   in equal parts if several do (the bytes of an emoji).
2. q shares no character (a newline dropped by the LLM's tokenizer, a token with an empty span): the nearest LLM token
   with a non-empty span, the earlier one on a tie.
3. q is a special token after the text: the LLM's last token if it is special too, else a row of zeros. Before the text:
   the LLM's first token, likewise. If the text has no tokens, all special tokens count as after it.
4. the LLM's tokenization of the text is empty: as rule 3 for a token after the text.
5. the LLM's prompt was truncated, and q lies entirely in the removed part: a row of zeros, before rules 2 and 4, since
   no LLM token represents those characters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

END = sys.maxsize
"""An offset after every character of any text."""


@dataclass(frozen=True)
class Spans:
    """Character spans [start, end) of tokens; a special token does not belong to the text.

    `cut`: span of the characters whose tokens `take` removed, up to the next kept token or the end.
    """

    start: list[int]
    end: list[int]
    special: list[bool]
    cut: tuple[int, int] | None = None

    @classmethod
    def of(cls, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> Spans:
        """From the offset mapping and the special tokens mask of a fast tokenizer."""
        return cls([a for a, _ in offsets], [b for _, b in offsets], [bool(s) for s in special])

    def take(self, positions: Sequence[int]) -> Spans:
        """The spans of the tokens at `positions` (ascending, at most one gap)."""
        first = next((n for n, i in enumerate(positions) if n != i), len(positions))  # index after the gap
        before, behind = ([i for i in part if not self.special[i]] for part in (positions[:first], positions[first:]))
        text_goes = sum(not self.special[i] for i in positions) < self.special.count(False)
        cut = (max((self.end[i] for i in before), default=0), min((self.start[i] for i in behind), default=END))
        return Spans(
            [self.start[i] for i in positions],
            [self.end[i] for i in positions],
            [self.special[i] for i in positions],
            cut if text_goes else self.cut,
        )

    def within(self, start: int, length: int) -> Spans:
        """The spans relative to the part of the text at `start`; tokens outside of the part become special."""
        text = [(a < start + length and b > start) or start <= a == b <= start + length for a, b in self]
        special = [known or not inside for known, inside in zip(self.special, text, strict=True)]
        clipped = [tuple(min(max(x - start, 0), length) for x in ab) for ab in self]
        return Spans([a for a, _ in clipped], [b for _, b in clipped], special)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.start, self.end, strict=True)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def leading(self) -> int:
        """Number of special tokens before the first token of the text (0 without text tokens)."""
        return self.special.index(False) if False in self.special else 0

    @property
    def behind(self) -> int:
        """Number of special tokens after the last token of the text."""
        return next((n for n, special in enumerate(reversed(self.special)) if not special), len(self))

    @property
    def last_is_special(self) -> bool:
        """Whether the last token is special."""
        return bool(self.special) and self.special[-1]


def alignment(slm: Spans, llm: Spans) -> Tensor:
    """align_QP, float32: per SLM token the weights over the LLM's tokens, which sum to 1 or (rules 3 to 5) to 0."""
    start_Q1, end_Q1 = torch.tensor(slm.start)[:, None], torch.tensor(slm.end)[:, None]
    start_P, end_P = torch.tensor(llm.start), torch.tensor(llm.end)
    text_P = ~torch.tensor(llm.special, dtype=torch.bool) & (end_P > start_P)
    begin_QP, stop_QP = torch.maximum(start_Q1, start_P), torch.minimum(end_Q1, end_P)
    overlap_QP = (stop_QP > begin_QP) & text_P
    # cumulative weight of the characters for each of the tokens that cover them
    worth = _cumulative_weights(start_P[text_P], end_P[text_P], max([0, *slm.end, *llm.end]))
    shared_QP = torch.where(overlap_QP, worth[stop_QP] - worth[begin_QP], 0.0)
    align_QP = (shared_QP / shared_QP.sum(1, keepdim=True).clamp(min=1)).float()

    special_Q = torch.tensor(slm.special, dtype=torch.bool)
    for q in torch.nonzero(~special_Q & ~overlap_QP.any(1)).flatten().tolist():
        if llm.cut and llm.cut[0] <= slm.start[q] and slm.end[q] <= llm.cut[1]:
            continue
        if text_P.any():
            gap_P = torch.maximum(start_Q1[q], start_P) - torch.minimum(end_Q1[q], end_P)
            gap_P = torch.where(text_P, gap_P, torch.iinfo(torch.int64).max)
            align_QP[q, int((gap_P == gap_P.min()).nonzero()[0])] = 1
        elif llm.last_is_special:
            align_QP[q, -1] = 1
    for q in torch.nonzero(special_Q).flatten().tolist():
        align_QP[q] = 0
        if q < slm.leading:
            if llm.leading:
                align_QP[q, 0] = 1
        elif llm.last_is_special:
            align_QP[q, -1] = 1
    return align_QP


def _cumulative_weights(start: Tensor, end: Tensor, characters: int) -> Tensor:
    """At c the sum of 1 / (number of covering tokens) over the covered characters before c; float64."""
    edges = torch.zeros(characters + 1, dtype=torch.int64)
    edges.index_add_(0, start, torch.ones_like(start)).index_add_(0, end, -torch.ones_like(end))
    owners = edges.cumsum(0)[:-1]
    each = torch.where(owners > 0, 1 / owners.clamp(min=1).double(), 0.0)
    return torch.cat([each.new_zeros(1), each.cumsum(0)])
