"""Conditioning `replace`: z in place of the SLM prompt embedding (Bergner et al. 2024, arXiv 2402.16844)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from llm2slm.models.conditioning import Conditioning
from llm2slm.models.prompt import Prompt
from llm2slm.models.sequences import align, require_same_shape
from llm2slm.types import Batch, Reps


def replace(embeds_BQD: Tensor, z_BQD: Tensor, mask_BQ: Tensor) -> Tensor:
    """z in place of the embedding at real prompt positions; padding is unchanged."""
    require_same_shape(embeds_BQD, z_BQD)
    return torch.where(mask_BQ.unsqueeze(-1).bool(), z_BQD.to(embeds_BQD.dtype), embeds_BQD)


class Mode(Conditioning):
    """Fits every SLM that takes embeddings. The SLM sees the prompt through z alone."""

    reads_embeddings: ClassVar[bool] = False

    def token_by_token(self, config: Any) -> bool:
        """z of a token replaces that token's embedding."""
        del config
        return True

    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        """The aligned z."""
        embeds_BQD, z_BQD = model.prompt_embeddings(batch, z), align(z.reps_BPE, batch.align_BQP)
        return Prompt(replace(embeds_BQD, z_BQD, batch.slm_mask_BQ), batch.slm_mask_BQ)
