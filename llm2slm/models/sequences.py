"""Tensor functions on padded sequences: alignment, concatenation, position numbers. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def align(z_BPD: Tensor, align_BQP: Tensor | None) -> Tensor:
    """Maps z from LLM tokens to SLM tokens: z_BQD = align_BQP @ z_BPD; unchanged for shared tokenizers (None)."""
    return z_BPD if align_BQP is None else align_BQP.to(z_BPD.dtype) @ z_BPD


def require_same_shape(embeds_BQD: Tensor, z_BQD: Tensor) -> None:
    """Refuses sequences of different lengths, which torch would broadcast silently.

    Raises:
        ValueError: with both shapes.
    """
    if embeds_BQD.shape != z_BQD.shape:
        raise ValueError(
            f"SLM prompt embeddings {tuple(embeds_BQD.shape)} and z {tuple(z_BQD.shape)} do not line up; "
            "the two tokenizers differ and no alignment was applied"
        )


def concatenate(
    first_BPD: Tensor, first_mask_BP: Tensor, second_BQD: Tensor, second_mask_BQ: Tensor, *, pad_left: bool
) -> tuple[Tensor, Tensor]:
    """Concatenates two padded sequences row by row, with all padding on one side.

    A gap of padding between the two would shift the positions of a padded row against the same row without padding.

    Returns:
        states (B, P + Q, D) in the dtype of the second sequence, and their mask (B, P + Q).
    """
    states = torch.cat([first_BPD.to(second_BQD.dtype), second_BQD], dim=1)
    mask = torch.cat([first_mask_BP, second_mask_BQ.to(first_mask_BP.dtype)], dim=1)
    order = torch.argsort(mask if pad_left else 1 - mask, dim=1, stable=True)
    return states.gather(1, order.unsqueeze(-1).expand_as(states)), mask.gather(1, order)


def positions(mask_BQ: Tensor) -> Tensor:
    """Position of each token, counted over real tokens only (0 at padding), as transformers' `generate` counts."""
    return (mask_BQ.long().cumsum(-1) - 1).clamp(min=0)
