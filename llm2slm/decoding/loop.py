"""The loop of generation: prefill, then one token of every row that is not finished; finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from llm2slm.decoding import steps_model
from llm2slm.decoding.choice import Choice, left_to_generate, needs_the_model, refuse
from llm2slm.decoding.decoder import GenerateDecoder, OnTokens, streamed
from llm2slm.decoding.forward import Forward
from llm2slm.models import slm as language_model
from llm2slm.models.prompt import Prompt
from llm2slm.types import Batch, Reps, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


NEW_TOKENS = 20
"""transformers' default of max_new_tokens."""
CALLED = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "tokenizer")
"""Arguments of `generate` that are no fields of a generation config, and that need the logits of steps only."""


@dataclass(frozen=True)
class Step:
    """The next token of every row that is not finished.

    Attributes:
        rows_B: indices of the rows (those of a prompt's samples are consecutive). ids_B: their tokens.
        logits_BV: from which the tokens were chosen, before any setting.
    """

    rows_B: Tensor
    ids_B: Tensor
    logits_BV: Tensor


@torch.no_grad()
def stream(
    model: LLM2SLM,
    batch: Batch,
    config: GenerationConfig,
    reps: Reps | None = None,
    forward: Forward | None = None,
) -> Iterator[Step]:
    """Responses to a batch, one token of every unfinished row at a time.

    Args:
        config: complete, with nothing that is `left_to_generate`; max_new_tokens is set.
        reps: as for `LLM2SLM.prefill`.
        forward: computes the steps; None: with a cache that grows.
    """
    forward = Forward(model) if forward is None else forward
    with forward.reading.active():
        prompt = model.prefill(batch, reps).repeated(config.num_return_sequences or 1)
    yield from stream_after(model, prompt, config, forward)


@torch.no_grad()
def stream_after(
    model: LLM2SLM, prompt: Prompt, config: GenerationConfig, forward: Forward | None = None
) -> Iterator[Step]:
    """Responses to a prompt with all its rows; arguments as for `stream`."""
    language_model.check_positions(model.slm, prompt, config.max_new_tokens)
    forward = Forward(model) if forward is None else forward
    state, logits_BV = forward.start(prompt, config.max_new_tokens)
    choice = chooser(model, prompt, config, logits_BV.device)
    ids_BT = logits_BV.new_zeros((len(logits_BV), 0), dtype=torch.int64)
    for remaining in range(config.max_new_tokens - 1, -1, -1):
        ids_B = choice(ids_BT, logits_BV)
        yield Step(state.rows_B, ids_B, logits_BV)
        if not remaining:
            return
        ids_BT = torch.cat([ids_BT, ids_B.unsqueeze(1)], dim=1)
        if len(choice.ends) and bool((ended_B := choice.ended(ids_B)).any()):
            kept_K = (~ended_B).nonzero().squeeze(1)
            if not len(kept_K):
                return
            state, ids_BT, ids_B = state.keep(kept_K), ids_BT[kept_K], ids_B[kept_K]
        state, logits_BV = forward.step(state, ids_B)


def chooser(model: LLM2SLM, prompt: Prompt, config: GenerationConfig, device: torch.device) -> Choice:
    """The choice of tokens after a prompt of a system."""
    starts = prompt.cross_attended or model.slm.config.is_encoder_decoder
    start = language_model.start_token(model.slm) if starts else None
    return Choice(config, start, 0 if starts else prompt.whole_mask.shape[1], device)


class LoopDecoder(GenerateDecoder):
    """This loop, or for beam search and settings that it lacks transformers' `generate`, over the passes of `forward`.

    Args:
        model: any system that `forward` fits.
    """

    def __init__(self, model: LLM2SLM, forward: Forward, name: str) -> None:
        super().__init__(model)
        self.forward, self.name = forward, name

    def generate(
        self,
        batch: Batch,
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """See `Decoder`. Arguments may be those of `CALLED` too.

        Raises:
            UserError: settings that need the model itself (`choice.needs_the_model`).
        """
        called = {name: arguments.pop(name) for name in CALLED if name in arguments}
        config = settings(self.model, generation_config, **arguments)
        refuse(needs_the_model(config), config, self.name)
        if called or left_to_generate(config):
            output: Tensor = self._by_transformers(batch, config, on_tokens, called)
            return output
        rows = len(batch.slm_mask_BQ) * (config.num_return_sequences or 1)
        with self.forward.reading.active():
            reps = self.reps(batch)
        steps = stream(self.model, batch, config, reps, self.forward)
        return collected(steps if on_tokens is None else _shown(steps, on_tokens), rows, padding(config))

    def _by_transformers(
        self, batch: Batch, config: GenerationConfig, on_tokens: OnTokens | None, called: dict[str, Any]
    ) -> Any:
        """Responses by transformers' `generate`, over the same steps."""
        if on_tokens is not None:
            called |= streamed(on_tokens, config.num_beams)
        if config.stop_strings:
            called.setdefault("tokenizer", self.model.collator.slm_tokenizer)
        with torch.no_grad(), self.forward.reading.active():
            prompt = self.model.prefill(batch, self.reps(batch))
        return steps_model.generate(self.forward, prompt, config, **called)


def _shown(steps: Iterable[Step], on_tokens: OnTokens) -> Iterator[Step]:
    """The steps, each passed on to `on_tokens` too."""
    for step in steps:
        on_tokens(step.rows_B, step.ids_B.unsqueeze(1), torch.ones_like(step.rows_B))
        yield step


def collected(steps: Iterable[Step], rows: int, pad: int) -> Tensor:
    """Responses as ids_BT, padded on the right.

    Args:
        steps: of a `stream`. rows: their number. pad: token behind the end of a response.
    """
    columns: list[Tensor] = []
    for step in steps:
        column = step.ids_B.new_full((rows,), pad)
        column[step.rows_B] = step.ids_B
        columns.append(column)
    return torch.stack(columns, dim=1)


def padding(config: GenerationConfig) -> int:
    """The token id behind the end of a response."""
    return 0 if config.pad_token_id is None else int(config.pad_token_id)


def settings(model: LLM2SLM, generation_config: GenerationConfig | None = None, **arguments: Any) -> GenerationConfig:
    """A complete generation config: the arguments override the config (None: the model's), as in `generate`."""
    config = deepcopy(language_model.completed_config(model.slm, generation_config))
    unknown = [name for name in arguments if not hasattr(config, name)]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: not a field of a generation config; use decoding=generate")
    for name, value in arguments.items():
        if value is not None:  # transformers takes None for an argument that is not given
            setattr(config, name, value)
    if config.max_length is not None and ("max_length" in arguments or config.max_new_tokens is None):
        starts = model.slm.config.is_encoder_decoder or model.mode.cross_attends
        config.max_new_tokens, config.max_length = config.max_length - int(starts), None
    elif config.max_new_tokens is None:
        config.max_new_tokens = NEW_TOKENS
    return config
