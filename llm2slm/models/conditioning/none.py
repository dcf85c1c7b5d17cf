"""No conditioning: a language model without an LLM encoder (`model.kind=slm` or `llm`)."""

from __future__ import annotations

from typing import Any

from llm2slm.models.conditioning import Conditioning
from llm2slm.models.prompt import Prompt, embed, embed_scale
from llm2slm.types import Batch, Reps


class Mode(Conditioning):
    """The SLM processes the embeddings of the prompt."""

    def misfit(self, slm: Any) -> str | None:
        """It fits no hybrid."""
        del slm
        return "a hybrid of LLM and SLM needs a conditioning"

    def modules(self, config: Any, slm: Any, encoder: Any) -> dict[str, Any]:
        """None; refuses an SLM that takes no embeddings."""
        del config, encoder
        embed_scale(slm)
        return {}

    def prompt(self, model: Any, batch: Batch, z: Reps | None = None) -> Prompt:
        """The prompt's embeddings and mask."""
        del z
        return Prompt(embed(model.slm, batch.slm_ids_BQ), batch.slm_mask_BQ)
