"""Statistics of an optimizer step for the loggers: norms of gradients, share of padding, memory of the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from llm2slm.types import IGNORE_INDEX, Batch


def gradient_norms(optimizer: Optimizer) -> dict[str, Tensor]:
    """The norm of the gradient of each part (projector, slm), before clipping; parts without gradients are left out.

    Sharded gradients are gathered, so every process must call it.
    """
    gradients: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        part = gradients.setdefault(str(group["name"]).removesuffix("_no_decay"), [])
        part += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
    norms = {part: torch.nn.utils.get_total_norm(found) for part, found in gradients.items() if found}
    return {part: norm.full_tensor() if hasattr(norm, "full_tensor") else norm for part, norm in norms.items()}


def filled_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """The number of positions of the SLM (prompt and response) that are no padding, and of all positions."""
    assert batch.labels_BT is not None
    filled = batch.slm_mask_BQ.sum() + (batch.labels_BT != IGNORE_INDEX).sum()
    return filled, torch.as_tensor(batch.slm_mask_BQ.numel() + batch.labels_BT.numel(), device=filled.device)


def device_memory_mb(device: torch.device) -> float | None:
    """Peak memory of tensors on a GPU so far, in megabytes (1e6 bytes); None for a processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    return None
