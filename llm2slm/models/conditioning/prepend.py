"""Conditioning `prepend`: z in front of the SLM prompt embeddings, as the soft prompt of LLaVA-like models."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from llm2slm.config import ModelConfig
from llm2slm.models.conditioning import Conditioning
from llm2slm.models.matrix_shapes import HybridShapes, PromptCost
from llm2slm.models.prompt import Prompt
from llm2slm.models.sequences import concatenate
from llm2slm.types import Batch, Reps, UserError


def groups_of(tokens: int, size: float) -> int:
    """Number of groups of a row of so many tokens; `size` as of `pool`."""
    return ceil(tokens * size) if size < 1 else min(tokens, int(size))


def pool(z_BPD: Tensor, mask_BP: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Means over neighbouring positions, which shorten z to fewer positions for the SLM.

    Args:
        size: number of groups of a row: at most `size` (1 or more), or that fraction of its tokens (below 1; rounded
            up). The groups of a row differ in length by at most one token.

    Returns:
        z (B, G, D), zero after a row's last group, and its mask (B, G). G is the largest number of groups in the batch,
        or in a compiled graph the largest number for P.
    """
    real_BP = mask_BP.long()
    length_B = real_BP.sum(1)
    groups_B = (length_B * size).ceil().long() if size < 1 else length_B.clamp(max=int(size))
    rank_BP = real_BP.cumsum(1) - 1
    group_BP = rank_BP * groups_B.unsqueeze(1) // length_B.clamp(min=1).unsqueeze(1)
    # in a compiled graph no shape may depend on the data: the largest number that is possible
    most = groups_of(z_BPD.shape[1], size) if torch.compiler.is_compiling() else int(groups_B.max())
    numbers_G = torch.arange(most, device=z_BPD.device)
    member_BGP = (group_BP.unsqueeze(1) == numbers_G[None, :, None]) & real_BP.unsqueeze(1).bool()
    share_BGP = member_BGP.to(z_BPD.dtype) / member_BGP.sum(2, keepdim=True).clamp(min=1).to(z_BPD.dtype)
    return share_BGP @ z_BPD, (numbers_G[None, :] < groups_B.unsqueeze(1)).to(mask_BP.dtype)


class Mode(Conditioning):
    """Fits every SLM that takes embeddings. The SLM processes the positions of z and those of the prompt."""

    options: ClassVar[tuple[str, ...]] = ("pool",)
    prompt_copies: ClassVar[int] = 2

    def check(self, cfg: ModelConfig) -> None:
        """`model.pool` is above 0."""
        if cfg.pool is not None and cfg.pool <= 0:
            raise UserError(f"model.pool={cfg.pool}: must be a number above 0")

    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        """z (pooled with `model.pool`), followed by the embeddings."""
        z_BPD, mask_BP = z.reps_BPE, z.mask_BP
        if model.config.pool is not None:
            z_BPD, mask_BP = pool(z_BPD, mask_BP, model.config.pool)
        embeds_BQD = model.prompt_embeddings(batch, z)
        return Prompt(*concatenate(z_BPD, mask_BP, embeds_BQD, batch.slm_mask_BQ, pad_left=model.pads_left))

    def positions(self, config: Any, own: int, llm: int) -> int:
        """One position for each token under either tokenizer, the upper bound with pooling."""
        del config
        return own + llm

    def cost(self, shapes: HybridShapes) -> PromptCost:
        """The SLM processes the positions of z as well; pooling is a product with all P."""
        cost, pooled = super().cost(shapes), shapes.options["pooled"]
        if pooled is None:
            return replace(cost, read=cost.read + shapes.llm_tokens)
        return replace(cost, read=cost.read + pooled, flops=2 * pooled * shapes.llm_tokens * shapes.width_z)
