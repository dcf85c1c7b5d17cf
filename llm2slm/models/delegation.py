"""Methods of a `PreTrainedModel` that a hybrid delegates to its SLM, and attributes that it collects from its parts.

transformers' Trainer, peft and accelerate use them: embeddings, gradient checkpointing, attention implementations,
tied weights, and the modules that must stay on one device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2slm.models import slm as language_model
from llm2slm.models.parts import Parts


class Delegation(Parts):
    """See the module. Each part checks itself whether it supports an attention implementation."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def init_weights(self) -> None:
        """Does nothing: the parts have their weights, and `post_init` only collects their attributes."""

    def post_init(self) -> None:
        """Collects tied weights, float32 modules, and modules that stay on one device, from SLM and LLM."""
        super().post_init()
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and module is not self:
                self._no_split_modules |= set(module._no_split_modules or ())

    @classmethod
    def can_generate(cls) -> bool:
        """True: `generate` is defined here."""
        return True

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; of a model that accelerate offloads, the device that it is run on."""
        found: torch.device = next(self.parameters()).device
        if found.type != "meta":
            return found
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        run_on = next((device for device in devices if device is not None), found)
        return torch.device("cuda", run_on) if isinstance(run_on, int) else torch.device(run_on)

    # Embeddings

    def get_input_embeddings(self) -> nn.Module:
        """The SLM's."""
        return self.slm.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Sets the SLM's."""
        self.slm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The SLM's output layer."""
        return self.slm.get_output_embeddings()  # type: ignore[no-any-return]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Sets the SLM's output layer."""
        self.slm.set_output_embeddings(new_embeddings)
        language_model.contiguous_head(self.slm)

    def resize_token_embeddings(self, *args: Any, **arguments: Any) -> nn.Module:
        """Resizes the SLM's, as its own method does; the LLM's vocabulary stays as it is.

        So a token that is added to a tokenizer that SLM and LLM share has no embedding in the LLM.
        """
        embeddings: nn.Module = self.slm.resize_token_embeddings(*args, **arguments)
        language_model.contiguous_head(self.slm)
        self.vocab_size = self.config.get_text_config().vocab_size  # as transformers' own method
        return embeddings

    # Expected by transformers' collators and by peft

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """`decoder_input_ids` of `forward` for a response: a start token, then the labels but the last.

        In an SLM that processes prompt and response as one sequence, the start token is a placeholder.
        """
        if not self.pads_left:
            return language_model.decoder_inputs(self.slm, labels)
        ids_BT = labels.new_full(labels.shape, self.processor.pad_token_id)
        ids_BT[:, 1:] = labels[:, :-1].clamp(min=0)
        return ids_BT

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Not used: `generate` computes the prompt once and runs the SLM's `generate`; peft expects the name."""
        raise NotImplementedError("call generate: the SLM prepares its inputs itself")

    _prepare_encoder_decoder_kwargs_for_generation = prepare_inputs_for_generation
