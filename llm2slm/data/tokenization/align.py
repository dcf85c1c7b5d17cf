"""Which LLM tokens an SLM token covers: the alignment of two tokenizations of one text by character offsets.

Rules, for the row of an SLM token q over the LLM tokens p:
1. the mean over the characters that q shares with any p: each counts for the p that has it, and in equal parts where
   several have it (the bytes of an emoji).
2. q shares none (a newline that the LLM's tokenizer drops, a token without a span): the nearest LLM token that has any
   character, on a tie the earlier one.
3. q is a special token behind the text: the LLM's last token if that is one too, else nothing (a row of zeros).
   In front of the text: the LLM's first token, likewise. Around a text of no tokens, all are behind it.
4. the LLM's tokenizer sees no text at all: as rule 3 says of a token behind the text.
5. the LLM's prompt was cut short, and q lies wholly in what was cut: nothing (a row of zeros), before rules 2 and 4.
   The LLM has not read those characters; its last token says nothing about them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

END = sys.maxsize
"""Behind every character of a text."""


@dataclass(frozen=True)
class Spans:
    """Where each token lies: characters [start, end) of the text; special ones (not of the text) lie nowhere.

    `cut`: characters of which `take` left the tokens out; all up to the next token that is left, or to the end.
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
        """Those of the named tokens, in order, with at most one gap in the numbers."""
        first = next((n for n, i in enumerate(positions) if n != i), len(positions))  # behind the gap
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
        """Of a text that stands in a longer one, at `start`: what lies outside of it counts as special."""
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
        """Special tokens in front of the first token of the text (0 where there is no text)."""
        return self.special.index(False) if False in self.special else 0

    @property
    def behind(self) -> int:
        """Special tokens behind the last token of the text."""
        return next((n for n, special in enumerate(reversed(self.special)) if not special), len(self))

    @property
    def last_is_special(self) -> bool:
        """Whether a special token closes the text."""
        return bool(self.special) and self.special[-1]


def alignment(slm: Spans, llm: Spans) -> Tensor:
    """align_QP, float32: rows of weights over the LLM's tokens, each summing to 1 or (rules 3 to 5) to 0."""
    start_Q1, end_Q1 = torch.tensor(slm.start)[:, None], torch.tensor(slm.end)[:, None]
    start_P, end_P = torch.tensor(llm.start), torch.tensor(llm.end)
    text_P = ~torch.tensor(llm.special, dtype=torch.bool) & (end_P > start_P)
    begin_QP, stop_QP = torch.maximum(start_Q1, start_P), torch.minimum(end_Q1, end_P)
    overlap_QP = (stop_QP > begin_QP) & text_P
    # what the characters up to each place are worth to one of the tokens that have them
    worth = _worth(start_P[text_P], end_P[text_P], max([0, *slm.end, *llm.end]))
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


def _worth(start: Tensor, end: Tensor, characters: int) -> Tensor:
    """At place c, the sum over the characters before c of 1 / (tokens that have it), where any has; float64."""
    edges = torch.zeros(characters + 1, dtype=torch.int64)
    edges.index_add_(0, start, torch.ones_like(start)).index_add_(0, end, -torch.ones_like(end))
    owners = edges.cumsum(0)[:-1]
    each = torch.where(owners > 0, 1 / owners.clamp(min=1).double(), 0.0)
    return torch.cat([each.new_zeros(1), each.cumsum(0)])
