"""The loop of generation: prefill, then one token of every row that is not finished; finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from llm2slm.decoding.choice import Choice, left_to_generate
from llm2slm.decoding.forward import Forward
from llm2slm.models import slm as language_model
from llm2slm.models.prompt import Prompt
from llm2slm.types import Batch, Reps

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


MAX_LENGTH = 20
"""transformers' default of max_length, which counts the start token and not the prompt of a `Prompt`."""


@torch.no_grad()
def stream(
    model: LLM2SLM,
    batch: Batch,
    config: GenerationConfig,
    reps: Reps | None = None,
    forward: Forward | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Responses to a batch, one token of every unfinished row at a time.

    Args:
        config: complete, with nothing that is `left_to_generate`; max_new_tokens is set.
        reps: as for `LLM2SLM.prefill`.
        forward: computes the steps; None: with a cache that grows.

    Yields:
        rows_B, indices of the rows (those of a prompt's samples are consecutive), and ids_B, their next tokens.
    """
    prompt = _repeated(model.prefill(batch, reps), config.num_return_sequences or 1)
    language_model.check_positions(model.slm, prompt, config.max_new_tokens)
    forward = Forward(model) if forward is None else forward
    state, logits_BV = forward.start(prompt, config.max_new_tokens)
    starts = prompt.cross_attended or model.slm.config.is_encoder_decoder
    start = language_model.start_token(model.slm) if starts else None
    choice = Choice(config, start, 0 if starts else prompt.whole_mask.shape[1], logits_BV.device)
    ids_BT = logits_BV.new_zeros((len(logits_BV), 0), dtype=torch.int64)
    for remaining in range(config.max_new_tokens - 1, -1, -1):
        ids_B = choice(ids_BT, logits_BV)
        yield state.rows_B, ids_B
        if not remaining:
            return
        ids_BT = torch.cat([ids_BT, ids_B.unsqueeze(1)], dim=1)
        if len(choice.ends) and bool((ended_B := choice.ended(ids_B)).any()):
            kept_K = (~ended_B).nonzero().squeeze(1)
            if not len(kept_K):
                return
            state, ids_BT, ids_B = state.keep(kept_K), ids_BT[kept_K], ids_B[kept_K]
        state, logits_BV = forward.step(state, ids_B)


def generate(
    model: LLM2SLM,
    batch: Batch,
    generation_config: GenerationConfig | None = None,
    *,
    reps: Reps | None = None,
    forward: Forward | None = None,
    **arguments: Any,
) -> Tensor:
    """Responses to a batch: ids_BT as `LLM2SLM.generate` returns them, for the settings that the loop applies.

    Raises:
        ValueError: settings that are `left_to_generate`.
    """
    config = settings(model, generation_config, **arguments)
    if left := left_to_generate(config):
        raise ValueError(f"{', '.join(left)}: use LLM2SLM.generate")
    columns: list[Tensor] = []
    rows = len(batch.slm_mask_BQ) * (config.num_return_sequences or 1)
    pad = 0 if config.pad_token_id is None else int(config.pad_token_id)
    for rows_B, ids_B in stream(model, batch, config, reps, forward):
        column = ids_B.new_full((rows,), pad)
        column[rows_B] = ids_B
        columns.append(column)
    return torch.stack(columns, dim=1)


def settings(model: LLM2SLM, generation_config: GenerationConfig | None = None, **arguments: Any) -> GenerationConfig:
    """A complete generation config: the arguments override the config (None: the model's), as in `generate`."""
    config = deepcopy(language_model.completed_config(model.slm, generation_config))
    unknown = [name for name in arguments if not hasattr(config, name)]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not a field of a generation config; use LLM2SLM.generate")
    for name, value in arguments.items():
        setattr(config, name, value)
    if "max_length" in arguments or config.max_new_tokens is None:
        starts = model.slm.config.is_encoder_decoder or model.mode.cross_attends
        config.max_new_tokens = (config.max_length or MAX_LENGTH) - int(starts)
    return config


def _repeated(prompt: Prompt, copies: int) -> Prompt:
    """The prompts, each row repeated for the samples of a prompt."""
    if copies == 1:
        return prompt
    rows = torch.arange(len(prompt.mask_BQ), device=prompt.mask_BQ.device).repeat_interleave(copies)
    return replace(prompt.rows(rows), cache=prompt.cache)
