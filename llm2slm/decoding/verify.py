"""Acceptance of drafted tokens, such that the response is one of the LLM alone.

Greedy: the tokens up to the first one that the LLM does not choose. Sampled: Leviathan et al. 2023 (arXiv 2211.17192),
algorithm 1, whose output has the LLM's distribution whatever the drafter's is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm2slm.decoding.draft import Draft


def accepted(draft: Draft, scores_BQV: Tensor, *, sampled: bool) -> tuple[Tensor, Tensor]:
    """The next tokens of every row: the accepted part of its draft, and one more that the LLM chooses.

    Args:
        draft: N tokens.
        scores_BQV: of the LLM, at the N positions of the draft and after it; Q = N + 1.
        sampled: else greedy. A draft without probabilities counts as certain.

    Returns:
        ids_BQ, and the number of accepted tokens (B,), which is the position of the last valid token.
    """
    return _sampled(draft, scores_BQV) if sampled else _greedy(draft, scores_BQV)


def _greedy(draft: Draft, scores_BQV: Tensor) -> tuple[Tensor, Tensor]:
    ids_BQ = scores_BQV.argmax(-1)
    agrees_BN = ids_BQ[:, :-1] == draft.ids_BN
    return ids_BQ, agrees_BN.long().cumprod(1).sum(1)


def _sampled(draft: Draft, scores_BQV: Tensor) -> tuple[Tensor, Tensor]:
    llm_BQV, ids_BN = scores_BQV.softmax(-1), draft.ids_BN
    drafter_BNV = draft.probabilities_BNV
    if drafter_BNV is None:
        drafter_BNV = torch.nn.functional.one_hot(ids_BN, llm_BQV.shape[-1]).to(llm_BQV.dtype)
    each_BN1 = ids_BN.unsqueeze(-1)
    ratio_BN = (llm_BQV[:, :-1].gather(-1, each_BN1) / drafter_BNV.gather(-1, each_BN1)).squeeze(-1)
    accepts_BN = torch.rand_like(ratio_BN) < ratio_BN
    counts_B = accepts_BN.long().cumprod(1).sum(1)
    # after a rejection the LLM's distribution without what the drafter had already offered, else the LLM's
    residual_BQV = torch.cat([(llm_BQV[:, :-1] - drafter_BNV).clamp(min=0), llm_BQV[:, -1:]], dim=1)
    rows_B = torch.arange(len(counts_B), device=counts_B.device)
    residual_BV = residual_BQV[rows_B, counts_B]
    # a residual of nothing but rounding errors: both distributions are equal
    empty_B1 = residual_BV.sum(-1, keepdim=True) <= 0
    residual_BV = torch.where(empty_B1, llm_BQV[rows_B, counts_B], residual_BV)
    ids_BQ = torch.cat([ids_BN, ids_BN[:, :1]], dim=1)
    ids_BQ[rows_B, counts_B] = torch.multinomial(residual_BV, 1).squeeze(1)
    return ids_BQ, counts_B
