"""How z reaches the SLM: pure functions on tensors, one per mode, and the bookkeeping of positions. torch only.

In every mode z enters at prompt positions only, in training as in generation: these functions never see a response.
`add` and `replace` are the two of Bergner et al. 2024 (arXiv 2402.16844); `prepend` is the soft prompt of LLaVA-like
models; `memory` (cross-attention to z instead of a reading of its own) and `cross_attention` (beside it) need no
function here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm2slm.types import Conditioning

IN_PLACE = (Conditioning.add, Conditioning.replace)
"""Modes that mix z into the prompt token by token. (So does `kv` with linear maps.)"""


def align(z_BPD: Tensor, align_BQP: Tensor | None) -> Tensor:
    """Moves z from LLM tokens to SLM tokens: z_BQD = align_BQP @ z_BPD. Shared tokenizers (None): as it is."""
    return z_BPD if align_BQP is None else align_BQP.to(z_BPD.dtype) @ z_BPD


def require_same_length(embeds_BQD: Tensor, z_BQD: Tensor) -> None:
    """Refuses to mix sequences that do not line up: a silent broadcast would corrupt every embedding.

    Raises:
        ValueError: with both shapes.
    """
    if embeds_BQD.shape != z_BQD.shape:
        raise ValueError(
            f"SLM prompt embeddings {tuple(embeds_BQD.shape)} and z {tuple(z_BQD.shape)} do not line up; "
            "the two tokenizers differ and nothing aligned them"
        )


def add(embeds_BQD: Tensor, z_BQD: Tensor, mask_BQ: Tensor) -> Tensor:
    """Embedding + z at real prompt positions; padding stays as it is."""
    require_same_length(embeds_BQD, z_BQD)
    return embeds_BQD + z_BQD * mask_BQ.unsqueeze(-1).to(z_BQD.dtype)


def replace(embeds_BQD: Tensor, z_BQD: Tensor, mask_BQ: Tensor) -> Tensor:
    """z in place of the embedding at real prompt positions; padding stays as it is."""
    require_same_length(embeds_BQD, z_BQD)
    return torch.where(mask_BQ.unsqueeze(-1).bool(), z_BQD.to(embeds_BQD.dtype), embeds_BQD)


def prepend(
    embeds_BQD: Tensor, mask_BQ: Tensor, z_BPD: Tensor, mask_BP: Tensor, *, pad_left: bool
) -> tuple[Tensor, Tensor]:
    """z, then the embeddings, with the padding of both moved to one side.

    Returns:
        states (B, P + Q, D) and their mask (B, P + Q): first the real z of a row, then its real embeddings, without a
        gap between them (a gap would shift positions in a padded batch against the same row alone).
    """
    states = torch.cat([z_BPD.to(embeds_BQD.dtype), embeds_BQD], dim=1)
    mask = torch.cat([mask_BP, mask_BQ.to(mask_BP.dtype)], dim=1)
    order = torch.argsort(mask if pad_left else 1 - mask, dim=1, stable=True)
    return states.gather(1, order.unsqueeze(-1).expand_as(states)), mask.gather(1, order)


def pool(z_BPD: Tensor, mask_BP: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Means over neighbouring positions, so that a long prompt costs the SLM little.

    Args:
        size: groups that a row is cut into: at most so many (1 or more), or that fraction of its tokens (below 1;
            rounded up). Groups of a row differ in length by one at most.

    Returns:
        z (B, N, D), zero behind a row's last group, and its mask (B, N).
    """
    real_BP = mask_BP.long()
    length_B = real_BP.sum(1)
    groups_B = (length_B * size).ceil().long() if size < 1 else length_B.clamp(max=int(size))
    rank_BP = real_BP.cumsum(1) - 1
    group_BP = rank_BP * groups_B.unsqueeze(1) // length_B.clamp(min=1).unsqueeze(1)
    numbers_N = torch.arange(int(groups_B.max()), device=z_BPD.device)
    member_BNP = (group_BP.unsqueeze(1) == numbers_N[None, :, None]) & real_BP.unsqueeze(1).bool()
    share_BNP = member_BNP.to(z_BPD.dtype) / member_BNP.sum(2, keepdim=True).clamp(min=1).to(z_BPD.dtype)
    return share_BNP @ z_BPD, (numbers_N[None, :] < groups_B.unsqueeze(1)).to(mask_BP.dtype)


def positions(mask_BQ: Tensor) -> Tensor:
    """Position of each token counted over real tokens only (0 for padding), as `generate` counts them."""
    return (mask_BQ.long().cumsum(-1) - 1).clamp(min=0)
