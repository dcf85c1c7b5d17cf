"""The prompts of a hybrid and of its LLM, with what both compute of them computed once.

The LLM's weights are shared by both systems (`models.llm.share_weights`); the hybrid's encoder is a view of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm2slm.decoding.forward import Forward
from llm2slm.decoding.state import DecodeState
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.prompt import Prompt
from llm2slm.models.soft_prompts import virtual_tokens
from llm2slm.types import Batch, Reps

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


def read(
    hybrid: LLM2SLM, forward: Forward, batch: Batch, llm_batch: Batch, copies: int
) -> tuple[Prompt, Prompt, tuple[DecodeState, Tensor] | None]:
    """Both prompts, encoded by one pass of the LLM where its weights are shared and the prompt's tokens are the same.

    Args:
        forward: of the LLM; a plain one, whose state is not in buffers.
        batch, llm_batch: the same prompts for either system.
        copies: rows for each prompt.

    Returns:
        The hybrid's prompt and the LLM's. Of a decoder-only LLM whose pass over the prompt gave the hybrid's
        representations also the state after it, and the logits_BV of the first token.
    """
    llm = forward.model
    shared = shares_the_encoding(hybrid, llm, batch, llm_batch)
    reps: Reps | None = None
    started: tuple[DecodeState, Tensor] | None = None
    if shared and llm.slm.config.is_encoder_decoder:
        reps = hybrid.represent(batch)
        prompt = encoded(reps, llm_batch).repeated(copies)
    elif shared and batch.llm_mask_BP is not None and isinstance(hybrid.encoder, FrozenEncoder):
        prompt = llm.prefill(llm_batch).repeated(copies)
        with hybrid.encoder.observed() as reps_of:
            started = forward.start(prompt, 1)
        reps_BPE, mask_BP = reps_of(started[0].cache)[::copies], llm_batch.slm_mask_BQ
        reps = Reps(_moved(reps_BPE, mask_BP, batch.llm_mask_BP), batch.llm_mask_BP)
    else:
        prompt = llm.prefill(llm_batch).repeated(copies)
    return hybrid.prefill(batch, reps).repeated(copies), prompt, started


def encoded(reps: Reps, llm_batch: Batch) -> Prompt:
    """The prompt of an encoder-decoder LLM from the hybrid's representations, where `shares_the_encoding`."""
    mask_BP = llm_batch.slm_mask_BQ
    return Prompt(_moved(reps.reps_BPE, reps.mask_BP, mask_BP), mask_BP, cross_attended=True)


def shares_the_encoding(hybrid: LLM2SLM, llm: LLM2SLM, batch: Batch, llm_batch: Batch) -> bool:
    """Whether `read` encodes the prompts once for both systems."""
    return _shared(hybrid, llm) and _same_tokens(batch, llm_batch)


def _shared(hybrid: LLM2SLM, llm: LLM2SLM) -> bool:
    """Whether the hybrid's representations are computed by the LLM's pass over the prompt, from the same tensors."""
    encoder = hybrid.encoder
    if not isinstance(encoder, FrozenEncoder) or (hybrid.ablation is not None and not hybrid.ablation.runs_llm):
        return False
    if encoder.body.get_input_embeddings().weight is not llm.slm.get_input_embeddings().weight:
        return False
    if llm.slm.config.is_encoder_decoder:
        return encoder.layers == [encoder.depth]
    # of a decoder-only LLM, the states after the final norm are not observed
    return virtual_tokens(llm.slm) is None and (encoder.kv_blocks is not None or encoder.depth not in encoder.layers)


def _same_tokens(batch: Batch, llm_batch: Batch) -> bool:
    """Whether the LLM gets the same tokens in both batches, padded on any side."""
    if batch.llm_ids_BP is None or batch.llm_mask_BP is None:
        return False
    first, second = batch.llm_mask_BP.bool(), llm_batch.slm_mask_BQ.bool()
    if first.shape != second.shape or not torch.equal(first.sum(1), second.sum(1)):
        return False
    return torch.equal(batch.llm_ids_BP[first], llm_batch.slm_ids_BQ[second])


def _moved(states_BPE: Tensor, mask_BP: Tensor, wanted_BP: Tensor) -> Tensor:
    """States with the padding of another mask of the same rows; zero at padding."""
    if torch.equal(mask_BP, wanted_BP):
        return states_BPE.masked_fill(~mask_BP.unsqueeze(-1).bool(), 0)
    moved_BPE = torch.zeros_like(states_BPE)
    moved_BPE[wanted_BP.bool()] = states_BPE[mask_BP.bool()]
    return moved_BPE
