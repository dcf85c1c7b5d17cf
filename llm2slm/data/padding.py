"""Padding of token id rows, and of tokenized rows under transformers' names, to rectangular tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llm2slm.types import IGNORE_INDEX

Row = Mapping[str, Any]
"""A tokenized row: tensors, or lists of numbers, under the names of `types.INPUTS`."""


def padded(rows: Sequence[Sequence[int]], pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask (1 at real tokens), int64, [rows, length of the longest row]; padded on the right unless `left`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for b, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[b, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[b, start : start + len(row)] = 1
    return ids, mask


def _real(row: Row, prefix: str) -> Tensor:
    """Where the row's prompt (`llm_`: the LLM's) has tokens: True, or False at padding."""
    return torch.as_tensor(row[f"{prefix}attention_mask"]).bool()


def padded_inputs(rows: Sequence[Row], prefix: str, pad: int, left: bool) -> dict[str, Tensor]:
    """Token ids and masks of prompts, padded to the longest of these rows; padding that they had is removed.

    Args:
        prefix: "" for the SLM's prompts, "llm_" for the LLM's.
    """
    ids = [torch.as_tensor(row[f"{prefix}input_ids"])[_real(row, prefix)].tolist() for row in rows]
    return dict(zip((f"{prefix}input_ids", f"{prefix}attention_mask"), padded(ids, pad, left), strict=True))


def padded_alignment(rows: Sequence[Row], left: bool) -> Tensor:
    """align_BQP of rows whose SLM prompts are padded on the left or right, and LLM prompts on the right."""
    found = [torch.as_tensor(row["alignment"])[_real(row, "")][:, _real(row, "llm_")] for row in rows]
    align_BQP = torch.zeros(len(rows), *(max(align_QP.shape[n] for align_QP in found) for n in (0, 1)))
    for place_QP, align_QP in zip(align_BQP, found, strict=True):
        tokens, llm_tokens = align_QP.shape
        start = len(place_QP) - tokens if left else 0
        place_QP[start : start + tokens, :llm_tokens] = align_QP
    return align_BQP


def padded_labels(rows: Sequence[Row]) -> Tensor:
    """labels_BT of rows, without the padding at their ends, padded on the right with IGNORE_INDEX."""
    labels = []
    for row in rows:
        ids = torch.as_tensor(row["labels"])
        real = (ids != IGNORE_INDEX).nonzero()
        labels.append(ids[: int(real[-1]) + 1 if len(real) else 0].tolist())
    return padded(labels, IGNORE_INDEX)[0]
