"""The SLM's input for a prompt: embeddings of tokens, the `Prompt`, and what its vectors are as arguments of `forward`.

Only this module and `slm` distinguish prompts that an encoder processes, that replace an encoder's output, or that are
the left part of a causal sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from llm2slm.models.kv_cache import PromptCache, refuse_checkpointing
from llm2slm.models.sequences import concatenate
from llm2slm.models.soft_prompts import PREFIX, PROMPT, virtual_tokens
from llm2slm.types import UserError


@dataclass(frozen=True)
class GatedStates:
    """What the gated cross-attention layers attend to.

    Attributes:
        keys_values: of each layer its keys and values of z, each (B, heads, P, width of a head).
        mask_BP: 1 at real positions.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask_BP: Tensor

    def rows(self, rows_B: Tensor) -> GatedStates:
        """Those of some rows of the batch, by their indices."""
        pairs = tuple((keys[rows_B], values[rows_B]) for keys, values in self.keys_values)
        return GatedStates(pairs, self.mask_BP[rows_B])


@dataclass(frozen=True)
class Prompt:
    """The input of the SLM before the response.

    Attributes:
        states_BQD, mask_BQ: vectors, and 1 at real positions.
        cross_attended: the states are cross-attention states: an encoder-decoder's encoder is not run on them, and a
            decoder-only model (with cross-attention layers) starts the response from its start token alone.
        gated_states: keys and values of z, which gated cross-attention layers attend to in addition.
        cache: keys and values of the positions before the states, of a decoder-only model.
    """

    states_BQD: Tensor
    mask_BQ: Tensor
    cross_attended: bool = False
    gated_states: GatedStates | None = None
    cache: PromptCache | None = None

    def rows(self, rows_K: Tensor) -> Prompt:
        """The prompts of some rows, by their indices; without the cache, whose rows belong to the cache in use."""
        gated = None if self.gated_states is None else self.gated_states.rows(rows_K)
        states, mask = self.states_BQD[rows_K], self.mask_BQ[rows_K]
        return replace(self, states_BQD=states, mask_BQ=mask, gated_states=gated, cache=None)

    def repeated(self, copies: int) -> Prompt:
        """The prompts with `copies` consecutive rows each."""
        if copies == 1:
            return self
        rows_K = torch.arange(len(self.mask_BQ), device=self.mask_BQ.device).repeat_interleave(copies)
        return replace(self.rows(rows_K), cache=None if self.cache is None else self.cache.rows(rows_K))

    @property
    def whole_mask(self) -> Tensor:
        """1 at real positions of the cache and the states, (B, C + length)."""
        return self.mask_BQ if self.cache is None else torch.cat([self.cache.mask_BC, self.mask_BQ], dim=1)


def embed(slm: PreTrainedModel, ids_BQ: Tensor) -> Tensor:
    """Input embeddings of token ids: ids_BQ -> embeds_BQD, equivalent to the ids as model input."""
    embeds_BQD: Tensor = slm.get_input_embeddings()(ids_BQ).to(ids_BQ.device)  # accelerate may distribute the parts
    scale = embed_scale(slm)
    return embeds_BQD if scale == 1 else embeds_BQD * scale


def embed_scale(slm: PreTrainedModel) -> float:
    """The factor that a model applies to embeddings of ids but not to `inputs_embeds`; 1 for most models.

    Marian and Pegasus scale (their encoder's `embed_scale`), BART and T5 do not. No config records it, so it is
    determined by a forward pass on two tokens, and cached on the model.

    Raises:
        UserError: no factor makes ids and embeddings equivalent.
    """
    known: float | None = getattr(slm, "llm2slm_embed_scale", None)
    if known is None:
        was_training = slm.training
        slm.eval()
        try:
            known = _measured_scale(slm)
        finally:
            slm.train(was_training)
        slm.llm2slm_embed_scale = known
    return known


@torch.no_grad()
def _measured_scale(slm: PreTrainedModel) -> float:
    table, config = slm.get_input_embeddings(), slm.config.get_text_config()
    special = {getattr(config, name, None) for name in ("pad_token_id", "bos_token_id")}
    ids_BQ = torch.tensor([[i for i in range(2, 8) if i not in special][:2]], device=table.weight.device)
    embeds_BQD = table(ids_BQ)
    body = slm.get_encoder() if slm.config.is_encoder_decoder else slm

    def run(**inputs: Tensor) -> Tensor:
        output: Tensor = body(**inputs, attention_mask=torch.ones_like(ids_BQ), return_dict=True)[0]
        return output.float()

    expected = run(input_ids=ids_BQ)
    tolerance = (1e-4 if table.weight.dtype == torch.float32 else 1e-2) * float(expected.norm())
    best, distance = 1.0, float("inf")
    for scale in (1.0, float(embeds_BQD.shape[-1]) ** 0.5):
        try:
            found = float((run(inputs_embeds=embeds_BQD * scale) - expected).norm())
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"SLM {config.model_type}: it takes token ids only, no embeddings ({error})") from None
        if found < distance:
            best, distance = scale, found
        if found == 0:
            break
    if distance > tolerance:
        raise UserError(
            f"SLM {config.model_type}: embeddings of token ids give other outputs than the ids, "
            "so z cannot be mixed into its prompt; use another SLM"
        )
    return best


def with_soft_prompts(slm: PreTrainedModel, prompt: Prompt) -> Prompt:
    """The prompt after the SLM's virtual tokens, if it has any from prompt tuning."""
    tokens = virtual_tokens(slm)
    if tokens is None or tokens.tune != PROMPT:
        return prompt
    states_BQD, mask_BQ = prompt.states_BQD, prompt.mask_BQ
    virtual_BSD = tokens.embeddings(len(states_BQD), states_BQD.dtype) * embed_scale(slm)
    mask_BS = mask_BQ.new_ones(virtual_BSD.shape[:2])
    joined = concatenate(virtual_BSD, mask_BS, states_BQD, mask_BQ, pad_left=not slm.config.is_encoder_decoder)
    return replace(prompt, states_BQD=joined[0], mask_BQ=joined[1])


def cached_prefix(slm: PreTrainedModel, rows: int, prompt: Prompt) -> tuple[int, dict[str, Any]]:
    """Positions that are cached before the first one processed (a trained prefix, or a prompt's cache), and
    the cache as arguments of `forward`."""
    if prompt.cache is not None:
        refuse_checkpointing(slm, "the prompt (conditioning=kv) is")
        return prompt.cache.mask_BC.shape[1], {"past_key_values": prompt.cache.new(rows), "use_cache": True}
    tokens = virtual_tokens(slm)
    if tokens is None or tokens.tune != PREFIX:
        return 0, {"use_cache": False}
    refuse_checkpointing(slm, "the trained prefix (tune=prefix) is")
    return tokens.length, {"past_key_values": tokens.cache(slm, rows), "use_cache": True}


def extended(mask_BQ: Tensor, before: int) -> Tensor:
    """A mask with `before` real positions added in front."""
    return torch.cat([mask_BQ.new_ones(len(mask_BQ), before), mask_BQ], dim=1)


def prompt_arguments(slm: PreTrainedModel, prompt: Prompt) -> dict[str, Any]:
    """The prompt as keyword arguments of the SLM's `forward` and `generate`."""
    if not prompt.cross_attended:
        return {"inputs_embeds": prompt.states_BQD, "attention_mask": prompt.mask_BQ}
    if slm.config.is_encoder_decoder:
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=prompt.states_BQD),
            "attention_mask": prompt.mask_BQ,
        }
    return {"encoder_hidden_states": prompt.states_BQD, "encoder_attention_mask": prompt.mask_BQ}
