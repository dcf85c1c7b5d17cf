"""Forward passes of the SLM during generation: over the prompt, then over one token of every row at a time.

They compute what transformers' `generate` computes, with the same growing cache, so the logits are the same.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from llm2slm.decoding.products import Products
from llm2slm.decoding.state import DecodeState, all_rows
from llm2slm.models.prompt import Prompt, cached_prefix, embed, extended, prompt_arguments, with_soft_prompts
from llm2slm.models.sequences import positions
from llm2slm.models.slm import start_token

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


class Forward:
    """Forward passes of one system's SLM.

    Args:
        model: the system; its encoder is not used.
        reading: products of the passes over prompts; None: the model's.
    """

    def __init__(self, model: LLM2SLM, reading: Products | None = None) -> None:
        self.model, self.slm = model, model.slm
        self.reading = Products({}) if reading is None else reading
        self.keeps_logits = "logits_to_keep" in inspect.signature(self.slm.forward).parameters

    def start(self, prompt: Prompt, new_tokens: int, copies: int = 1) -> tuple[DecodeState, Tensor]:
        """The state after the prompt (and the start token, if there is one), and the logits_BV of the first token.

        Args:
            new_tokens: the most tokens of a response; a cache that grows does not need it.
            copies: consecutive rows of each prompt, which is processed once.
        """
        del new_tokens
        state, logits_B1V = self.read(prompt)
        if copies == 1:
            return state, logits_B1V[:, 0]
        rows_B = state.rows_B.repeat_interleave(copies)
        state = replace(state.keep(rows_B), rows_B=all_rows(len(rows_B), rows_B.device))
        return state, logits_B1V[rows_B, 0]

    def read(self, prompt: Prompt, ids_BN: Tensor | None = None) -> tuple[DecodeState, Tensor]:
        """The state after the prompt and N further tokens (None: 0), and logits_BQV of the N + 1 tokens after it."""
        with self.reading.active():
            return self._read(prompt, ids_BN)

    def _read(self, prompt: Prompt, ids_BN: Tensor | None) -> tuple[DecodeState, Tensor]:
        """See `read`."""
        prompt = with_soft_prompts(self.slm, prompt)
        rows = len(prompt.mask_BQ)
        before, cached = cached_prefix(self.slm, rows, prompt)
        cache = cached.get("past_key_values") or self._new_cache()
        mask_BC: Tensor | None
        if not prompt.cross_attended and not self.slm.config.is_encoder_decoder:
            mask_BC = prompt.whole_mask if prompt.cache is not None else extended(prompt.mask_BQ, before)
            embeds_BQD = prompt.states_BQD
            if ids_BN is not None:
                mask_BC = torch.cat([mask_BC, torch.ones_like(ids_BN).to(mask_BC.dtype)], dim=1)
                embeds_BQD = torch.cat([embeds_BQD, embed(self.slm, ids_BN).to(embeds_BQD.dtype)], dim=1)
            state = DecodeState(all_rows(rows, mask_BC.device), cache, mask_BC, prompt, {})
            return self._forward(state, inputs_embeds=embeds_BQD, kept=1 if ids_BN is None else ids_BN.shape[1] + 1)
        attended = prompt_arguments(self.slm, prompt)
        if "inputs_embeds" in attended:
            attended["encoder_outputs"] = self.slm.get_encoder()(**attended, return_dict=True)
            del attended["inputs_embeds"]
        ids_B1 = prompt.mask_BQ.new_full((rows, 1), start_token(self.slm), dtype=torch.int64)
        ids_BQ = ids_B1 if ids_BN is None else torch.cat([ids_B1, ids_BN], dim=1)
        mask_BC = None if self.slm.config.is_encoder_decoder else extended(torch.ones_like(ids_BQ), before)
        state = DecodeState(all_rows(rows, ids_B1.device), cache, mask_BC, prompt, attended)
        return self._forward(state, ids_BQ, kept=ids_BQ.shape[1])

    def step(self, state: DecodeState, ids_B: Tensor) -> tuple[DecodeState, Tensor]:
        """The state after one more token of every row, and the logits_BV of the next one."""
        mask_BC = state.mask_BC
        if mask_BC is not None:
            mask_BC = torch.cat([mask_BC, mask_BC.new_ones(len(mask_BC), 1)], dim=1)
        state, logits_B1V = self._forward(replace(state, mask_BC=mask_BC), ids_B.unsqueeze(1))
        return state, logits_B1V[:, 0]

    def _new_cache(self) -> Any:
        """An empty cache, as `generate` makes it."""
        cache = DynamicCache(config=self.slm.config.get_text_config(decoder=True))
        return EncoderDecoderCache(cache, DynamicCache()) if self.slm.config.is_encoder_decoder else cache

    def _forward(
        self,
        state: DecodeState,
        ids_BT: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        kept: int = 1,
    ) -> tuple[DecodeState, Tensor]:
        """A forward pass over the last positions of the state's mask, which are not in its cache yet.

        Returns:
            the state after it, and the logits of the last `kept` positions.
        """
        name = "decoder_input_ids" if self.slm.config.is_encoder_decoder else "input_ids"
        inputs: dict[str, Any] = {name: ids_BT} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        if state.mask_BC is not None:
            new = (ids_BT if inputs_embeds is None else inputs_embeds).shape[1]  # type: ignore[union-attr]
            inputs |= {"attention_mask": state.mask_BC, "position_ids": positions(state.mask_BC)[:, -new:]}
        with self.model.attending(state.prompt):
            cached = {"past_key_values": state.cache, "use_cache": True, "return_dict": True}
            wanted = {"logits_to_keep": kept} if self.keeps_logits else {}
            output = self.slm(**inputs, **state.attended, **cached, **wanted)
        return replace(state, cache=output.past_key_values), output.logits[:, -kept:]
