"""The projector: a small MLP that maps LLM representations (width E) to SLM inputs (width D). torch only.

Linear, ReLU, Linear as in Bergner et al. 2024 (arXiv 2402.16844), here with a normalisation of its input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


class Projector(nn.Module):
    """z = Linear(ReLU(Linear(norm(reps)))), applied to every position independently.

    Args:
        width_in: E, the LLM's width.
        width_out: D, the SLM's width.
        hidden: width of the hidden layer; None: D; 0: a single Linear layer.
        norm: RMS-normalise each representation. LLM layers differ in scale by orders of magnitude; without
            normalisation, the scale determines the effective learning rate.
        gate: multiply z by a scalar parameter that starts at 0.
        start: "zero": the last layer starts at zero, and so does z; "identity": it starts at zero, and the
            representations are added to its output (E = D), so that z starts equal to them; else random.
        layers: number of LLM layers of width E that are concatenated in reps_BPE. More than one are mixed as in Peters
            et al. 2018 (arXiv 1802.05365): each is normalised, then summed with learned weights that sum to 1.
        embeddings: width of the LLM's embeddings, which `embed` maps to width D (Bergner et al. 2024); 0: no such map.

    Attributes:
        shape: (E, hidden, D); hidden 0: a single Linear layer. embedding_width: as `embeddings`.
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
        self.shape, self.embedding_width = (width_in, hidden, width_out), embeddings
        steps: list[nn.Module] = [nn.RMSNorm(width_in)] if norm else []
        if hidden:
            steps += [nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out)]
        else:
            steps += [nn.Linear(width_in, width_out)]
        self.layers = nn.Sequential(*steps)
        self.skips = start == "identity"
        if self.skips and width_in != width_out:
            raise ValueError(f"start=identity: E={width_in} and D={width_out} differ")
        if start in ("zero", "identity"):  # after random initialisation: the random state does not depend on `start`
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
        """Maps the LLM's token embeddings to the SLM's width: embeds_BPE -> embeds_BPD."""
        if self.tokens is None:
            raise ValueError("this projector has no map of embeddings; construct it with `embeddings`")
        embeds_BPD: Tensor = self.tokens(embeds_BPE.to(self.tokens.weight.dtype))
        return embeds_BPD
