"""transformers' `generate` over the forward passes of a `Forward`: beam search and settings that our loop lacks.

`generate` is given a model whose `forward` returns the logits of `Forward.start`, then those of `Forward.step`. Its
inputs have the shapes that `generate` gets for the SLM itself, so lengths and penalties count the same positions.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm2slm.decoding.forward import Forward
from llm2slm.decoding.state import DecodeState
from llm2slm.models import slm as language_model
from llm2slm.models.prompt import Prompt


@torch.no_grad()
def generate(forward: Forward, prompt: Prompt, config: GenerationConfig, **arguments: Any) -> Any:
    """Responses by transformers' `generate`, as `slm.generate` returns them, without keys and values.

    Args:
        prompt: one row for each prompt; it is processed once, whatever the number of beams or samples.
        config: complete, max_new_tokens is set; no setting needs the model itself (`choice.needs_the_model`).
        arguments: of `generate`, other than those of a generation config.
    """
    steps = StepsModel(forward, prompt, config.max_new_tokens)
    output = language_model.generate(forward.slm, prompt, config, by=steps, **arguments)
    if not isinstance(output, Tensor):
        output.past_key_values = None  # its buffers are used again
    return output


class StepsCache(Cache):
    """A generation in progress, as the cache that `generate` passes from step to step.

    Args:
        state: after the tokens processed so far.
    """

    def __init__(self, state: DecodeState) -> None:
        super().__init__(layers=[])
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not used: `StepsModel` takes the last token of every row."""
        del layer_idx
        return 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row r continues row beam_idx[r], which has the same prompt."""
        self.state = self.state.reordered(beam_idx)


class StepsModel(PreTrainedModel, GenerationMixin):
    """A model without weights for one call of `generate`.

    Args:
        steps: computes the logits. prompt: one row for each prompt. new_tokens: the most tokens of a response.
    """

    def __init__(self, steps: Forward, prompt: Prompt, new_tokens: int) -> None:
        config = deepcopy(steps.slm.config)
        config._attn_implementation = "eager"  # there is no attention here; transformers checks the class for others
        super().__init__(config)
        self.steps, self.prompt, self.new_tokens = steps, prompt, new_tokens
        self.generation_config = steps.slm.generation_config

    @property
    def device(self) -> torch.device:
        """That of the prompt."""
        return self.prompt.mask_BQ.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the SLM."""
        dtype: torch.dtype = self.steps.slm.dtype
        return dtype

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens so far, and what the last step returned. `generate` accepts arguments by these names."""
        del inputs_embeds, kwargs
        return {"input_ids": input_ids, "past_key_values": past_key_values}

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        *,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """The logits_R1V of the next token of every row.

        Args:
            input_ids: of all rows; the rows of one prompt are consecutive. Only the last token is used, and of the
                first call none.
            past_key_values: a `StepsCache`; in the first call any other value.
        """
        del attention_mask, inputs_embeds, encoder_outputs, encoder_hidden_states, encoder_attention_mask
        if isinstance(past_key_values, StepsCache):
            past_key_values.state, logits_RV = self.steps.step(past_key_values.state, input_ids[:, -1])
        else:
            copies = len(input_ids) // len(self.prompt.mask_BQ)
            state, logits_RV = self.steps.start(self.prompt, self.new_tokens, copies)
            past_key_values = StepsCache(state)
        return CausalLMOutputWithPast(logits=logits_RV.unsqueeze(1), past_key_values=past_key_values)
