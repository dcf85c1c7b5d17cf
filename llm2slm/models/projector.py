"""The projector: a small MLP that maps LLM representations (width E) to SLM inputs (width D). torch only.

Linear, ReLU, Linear as in Bergner et al. 2024 (arXiv 2402.16844); the normalisation in front of it is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """z = Linear(ReLU(Linear(norm(reps)))), applied to every position alone.

    Args:
        width_in: E, the LLM's width.
        width_out: D, the SLM's width.
        hidden: width of the hidden layer; None: D; 0: one Linear layer and nothing else.
        norm: RMS-normalise each representation first. LLM layers differ in scale by orders of magnitude; without
            this, the scale decides the learning rate.
        gate: multiply z by a scalar parameter that starts at 0.
    """

    def __init__(
        self, width_in: int, width_out: int, hidden: int | None = None, norm: bool = True, gate: bool = False
    ) -> None:
        super().__init__()
        hidden = width_out if hidden is None else hidden
        layers: list[nn.Module] = [nn.RMSNorm(width_in)] if norm else []
        if hidden:
            layers += [nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out)]
        else:
            layers += [nn.Linear(width_in, width_out)]
        self.layers = nn.Sequential(*layers)
        self.gate = nn.Parameter(torch.zeros(())) if gate else None

    def forward(self, reps_BPE: Tensor) -> Tensor:
        """reps_BPE -> z_BPD."""
        z_BPD: Tensor = self.layers(reps_BPE.to(next(self.parameters()).dtype))
        return z_BPD if self.gate is None else z_BPD * self.gate
