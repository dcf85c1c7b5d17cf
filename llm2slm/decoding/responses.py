"""The responses of a batch whose rows advance by different numbers of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from llm2slm.decoding.choice import Choice


class Responses:
    """The responses of a batch, R rows, of which those in `rows_B` are still computed.

    Args:
        rows: R. limit: their maximum length. spare: columns for drafts beyond it.
        pad: token behind the end of a response. choice: knows the end tokens.

    Attributes:
        ids_RT: tokens; behind counts_R, of each row its length, they have no meaning.
        whole_R: rows without a rejected token.
    """

    def __init__(self, rows: int, limit: int, spare: int, pad: int, choice: Choice) -> None:
        self.limit, self.columns, self.pad, self.choice = limit, limit + spare + 1, pad, choice
        self.rows_B = torch.arange(rows, device=choice.ends.device)
        self.ids_RT = self.rows_B.new_zeros(rows, self.columns)
        self.counts_R = torch.zeros_like(self.rows_B)
        self.done_R = torch.zeros_like(self.rows_B, dtype=torch.bool)
        self.whole_R = torch.ones_like(self.done_R)

    def active(self) -> Tensor:
        """Which of `rows_B` are not complete."""
        return ~self.done_R[self.rows_B]

    def current(self) -> tuple[Tensor, Tensor]:
        """ids_BT and counts_B of `rows_B`."""
        return self.ids_RT[self.rows_B], self.counts_R[self.rows_B]

    def keep(self, kept_K: Tensor) -> None:
        """Computes only some of `rows_B` from now on."""
        self.rows_B = self.rows_B[kept_K]

    def append(self, ids_BQ: Tensor, accepted_B: Tensor, drafted: int) -> Tensor:
        """Adds the tokens of a verification to the rows that are not complete.

        Args:
            ids_BQ, accepted_B: as `verify.accepted` returns them. drafted: number of tokens that were verified.

        Returns:
            the number of tokens added to each row (B,): up to the first end token or the limit.
        """
        steps_Q = torch.arange(ids_BQ.shape[1], device=ids_BQ.device)
        ends_BQ = self.choice.ended(ids_BQ) & (steps_Q <= accepted_B.unsqueeze(1))
        first_end_B = torch.where(ends_BQ.any(1), ends_BQ.long().argmax(1), accepted_B)
        left_B = self.limit - self.counts_R[self.rows_B]
        active_B = self.active()
        new_B = torch.where(active_B, torch.minimum(first_end_B + 1, left_B), 0)
        before_B = self.counts_R[self.rows_B]
        columns_BQ = before_B.unsqueeze(1) + steps_Q
        added_BQ = steps_Q < new_B.unsqueeze(1)
        rows_BQ = self.rows_B.unsqueeze(1).expand_as(columns_BQ)
        self.ids_RT[rows_BQ[added_BQ], columns_BQ[added_BQ]] = ids_BQ[added_BQ]
        self.counts_R[self.rows_B] += new_B
        self.whole_R[self.rows_B] &= ~active_B | (accepted_B >= torch.minimum(new_B, new_B.new_full((), drafted)))
        ended_B = ends_BQ.any(1) & (new_B == first_end_B + 1)
        self.done_R[self.rows_B] |= active_B & (ended_B | (new_B == left_B))
        return new_B

    def padded(self) -> Tensor:
        """ids_RT up to the longest response, with padding behind each."""
        longest = int(self.counts_R.max())
        steps_T = torch.arange(longest, device=self.ids_RT.device)
        return torch.where(steps_T < self.counts_R.unsqueeze(1), self.ids_RT[:, :longest], self.pad)
