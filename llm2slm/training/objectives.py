"""Training objectives: token cross-entropy over the response, and divergence from a teacher. torch only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm2slm.types import IGNORE_INDEX

AT_ONCE = 1024
"""Positions whose distributions are in memory at once."""


def token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy in nats, summed over the response's tokens, and their number.

    Sum and count are separate so that the mean can be over all tokens of a batch, an accumulation window or all
    processes. A mean of means would give tokens of short rows more weight.

    Args:
        labels_BT: IGNORE_INDEX at positions without a target.
    """
    total = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, (labels_BT != IGNORE_INDEX).sum()


def token_divergence(
    logits_BTV: Tensor, teacher_BTV: Tensor, labels_BT: Tensor, temperature: float = 1.0, tokens: int | None = None
) -> Tensor:
    """T^2 KL(teacher || student) of the next token in nats, summed over the response's tokens.

    Distillation of Hinton et al. 2015 (arXiv 1503.02531), whose T^2 keeps the gradient's scale at any temperature, at
    each token of a response (word level, Kim and Rush 2016, arXiv 1606.07947).

    Args:
        logits_BTV: of the student, with gradient. teacher_BTV: without gradient; its V may differ.
        labels_BT: IGNORE_INDEX at positions without a target.
        temperature: T, the divisor of both logits.
        tokens: compare only the first `tokens` entries of V, renormalized; None: those that both have.
    """
    common = min(logits_BTV.shape[-1], teacher_BTV.shape[-1])
    common = common if tokens is None else min(common, tokens)
    real_BT = labels_BT != IGNORE_INDEX
    total: Tensor = _Divergence.apply(logits_BTV, teacher_BTV[..., :common], real_BT, temperature)
    return total


class _Divergence(torch.autograd.Function):
    """Computes the gradient, T (student - teacher), together with the value and saves only it for the backward pass.

    Distributions are in memory for a few rows at a time. Entries of the student's V beyond the teacher's are ignored.
    """

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, teacher_BTV: Tensor, real_BT: Tensor, temperature: float) -> Tensor:
        dtype = torch.promote_types(logits_BTV.dtype, torch.float32)
        total, grad_BTV = logits_BTV.new_zeros((), dtype=dtype), torch.zeros_like(logits_BTV)
        rows, common = max(1, AT_ONCE // max(1, real_BT.shape[1])), teacher_BTV.shape[-1]
        for start in range(0, len(real_BT), rows):
            part, ignored_BT1 = slice(start, start + rows), ~real_BT[start : start + rows].unsqueeze(-1)
            student_BTV = (logits_BTV[part, :, :common].to(dtype) / temperature).log_softmax(-1)
            target_BTV = (teacher_BTV[part].to(dtype) / temperature).log_softmax(-1)
            p_BTV = target_BTV.exp()
            divergence_BTV = p_BTV * target_BTV.sub_(student_BTV)
            total += divergence_BTV.masked_fill_(ignored_BT1, 0).sum()
            grad_BTV[part, :, :common] = student_BTV.exp_().sub_(p_BTV).masked_fill_(ignored_BT1, 0) * temperature
        ctx.save_for_backward(grad_BTV)
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_BTV,) = ctx.saved_tensors
        return grad_BTV * grads[0].to(grad_BTV.dtype), None, None, None
