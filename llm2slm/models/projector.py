"""The projector: a small MLP that maps LLM representations (width E) to SLM inputs (width D). torch only.

Linear, ReLU, Linear as in Bergner et al. 2024 (arXiv 2402.16844); the normalisation in front of it is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


class Projector(nn.Module):
    """z = Linear(ReLU(Linear(norm(reps)))), applied to every position alone.

    Args:
        width_in: E, the LLM's width.
        width_out: D, the SLM's width.
        hidden: width of the hidden layer; None: D; 0: one Linear layer and nothing else.
        norm: RMS-normalise each representation first. LLM layers differ in scale by orders of magnitude; without
            this, the scale decides the learning rate.
        gate: multiply z by a scalar parameter that starts at 0.
        start: "zero": the last layer starts at zero, so that z does; "identity": it starts at zero, and the
            representations are added to its output (E = D), so that z starts as them; else it is drawn.
        layers: how many layers of width E stand side by side in reps_BPE. More than one are mixed first, as in Peters
            et al. 2018 (arXiv 1802.05365): each normalised, then summed with learned weights that sum to 1.
        embeddings: width of the LLM's embeddings, where the SLM is to read the LLM's tokens (Bergner et al. 2024); 0:
            it reads its own.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        hidden: int | None = None,
        norm: bool = True,
        gate: bool = False,
        *,
        start: str | None = None,
        layers: int = 1,
        embeddings: int = 0,
    ) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(layers)) if layers > 1 else None
        hidden = width_out if hidden is None else hidden
        steps: list[nn.Module] = [nn.RMSNorm(width_in)] if norm else []
        if hidden:
            steps += [nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out)]
        else:
            steps += [nn.Linear(width_in, width_out)]
        self.layers = nn.Sequential(*steps)
        self.skips = start == "identity"
        if self.skips and width_in != width_out:
            raise ValueError(f"start=identity: E={width_in} and D={width_out} differ")
        if start in ("zero", "identity"):  # drawn first: whatever is drawn next is what it would be otherwise
            for parameter in steps[-1].parameters():
                nn.init.zeros_(parameter)
        self.gate = nn.Parameter(torch.zeros(())) if gate else None
        self.tokens = nn.Linear(embeddings, width_out, bias=False) if embeddings else None

    def forward(self, reps_BPE: Tensor) -> Tensor:
        """reps_BPE -> z_BPD (with several layers, E is the sum of their widths)."""
        reps_BPE = reps_BPE.to(next(self.parameters()).dtype)
        if self.mix is not None:
            reps_BPLE = reps_BPE.unflatten(-1, (self.mix.numel(), -1))
            reps_BPLE = layer_norm(reps_BPLE, reps_BPLE.shape[-1:])
            reps_BPE = (reps_BPLE * self.mix.softmax(0).unsqueeze(-1)).sum(-2)
        z_BPD: Tensor = self.layers(reps_BPE)
        z_BPD = z_BPD + reps_BPE if self.skips else z_BPD
        return z_BPD if self.gate is None else z_BPD * self.gate

    def embed(self, embeds_BPE: Tensor) -> Tensor:
        """The LLM's embeddings of its tokens as the SLM's: embeds_BPE -> embeds_BPD."""
        if self.tokens is None:
            raise ValueError("this projector maps no embeddings; give `embeddings`")
        embeds_BPD: Tensor = self.tokens(embeds_BPE.to(self.tokens.weight.dtype))
        return embeds_BPD
