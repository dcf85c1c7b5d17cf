"""What training minimises: token cross-entropy over the response. torch only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llm2slm.types import IGNORE_INDEX


def token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy in nats, summed over the response's tokens, and their number.

    Sum and count come apart so that a mean can be taken over all tokens that count (a batch, an accumulation window,
    all processes) instead of a mean of means, in which a token of a short row would weigh more.

    Args:
        labels_BT: IGNORE_INDEX where nothing is to be predicted.
    """
    total = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, (labels_BT != IGNORE_INDEX).sum()
