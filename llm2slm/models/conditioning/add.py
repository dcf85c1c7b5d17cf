"""Conditioning `add`: SLM prompt embedding + z, token by token (Bergner et al. 2024, arXiv 2402.16844)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from llm2slm.models.conditioning import Conditioning
from llm2slm.models.prompt import Prompt
from llm2slm.models.sequences import align, require_same_shape
from llm2slm.types import Batch, Reps


def add(embeds_BQD: Tensor, z_BQD: Tensor, mask_BQ: Tensor) -> Tensor:
    """Embedding + z at real prompt positions; padding is unchanged."""
    require_same_shape(embeds_BQD, z_BQD)
    return embeds_BQD + z_BQD * mask_BQ.unsqueeze(-1).to(z_BQD.dtype)


class Mode(Conditioning):
    """Fits every SLM that takes embeddings. Costs the SLM nothing but the addition."""

    plain_at_zero: ClassVar[bool] = True

    def token_by_token(self, config: Any) -> bool:
        """z of a token is added to that token's embedding."""
        del config
        return True

    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        """The sum of the embeddings and the aligned z."""
        embeds_BQD, z_BQD = model.prompt_embeddings(batch, z), align(z.reps_BPE, batch.align_BQP)
        return Prompt(add(embeds_BQD, z_BQD, batch.slm_mask_BQ), batch.slm_mask_BQ)
