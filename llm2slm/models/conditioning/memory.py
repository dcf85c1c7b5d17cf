"""Conditioning `memory`: the SLM's cross-attention attends to z; the SLM does not process the prompt.

Of an encoder-decoder SLM the encoder is removed. A decoder-only SLM whose architecture has cross-attention layers
(GPT-2) gets them with random weights; only its start token precedes the response.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from llm2slm.config import ModelConfig
from llm2slm.models.conditioning import Conditioning
from llm2slm.models.matrix_shapes import HybridShapes, PromptCost
from llm2slm.models.prompt import Prompt
from llm2slm.models.soft_prompts import PROMPT
from llm2slm.types import Batch, Reps, UserError


class NoEncoder(nn.Module):
    """Stands for the removed encoder of an encoder-decoder SLM."""

    main_input_name = "input_ids"

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        """Of the decoder alone."""
        del embeddings

    def forward(self, *_: Any, **__: Any) -> None:
        """Never called: `generate` is given the encoder's output."""
        raise RuntimeError("this SLM has no encoder: its decoder attends to z (conditioning=memory)")


def drop_encoder(slm: Any) -> None:
    """Removes the encoder of an encoder-decoder, in place. Tensors that the decoder shares stay with the decoder."""
    encoder = slm.get_encoder()
    path = next(name for name, module in slm.named_modules() if module is encoder)
    parent, _, name = path.rpartition(".")
    setattr(slm.get_submodule(parent), name, NoEncoder())
    for module in slm.modules():
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            if tied := getattr(module, attribute, None):
                kept = {key: value for key, value in tied.items() if not key.startswith(("encoder.", f"{path}."))}
                setattr(module, attribute, kept)


@torch.no_grad()
def masks_states(slm: Any) -> bool:
    """Whether the cross-attention of a decoder-only model accepts a mask of shape (B, P), found by a forward pass on
    one token. That of transformers' GPT-BigCode does not. True on the meta device, where no pass is possible.
    """
    if slm.device.type == "meta":
        return True
    ids_BT = torch.zeros(1, 1, dtype=torch.int64, device=slm.device)
    states_BPD = torch.zeros(1, 2, slm.config.hidden_size, dtype=slm.dtype, device=slm.device)
    mask_BP = torch.tensor([[1, 0]], device=slm.device)
    was_training = slm.training
    slm.eval()
    try:
        slm(ids_BT, attention_mask=mask_BP[:, :1], encoder_hidden_states=states_BPD, encoder_attention_mask=mask_BP)
    except AssertionError:
        return False
    finally:
        slm.train(was_training)
    return True


class Mode(Conditioning):
    """Fits SLMs with cross-attention. The cheapest way: the SLM processes no prompt."""

    cross_attends: ClassVar[bool] = True
    reads_embeddings: ClassVar[bool] = False
    prompt_copies: ClassVar[int] = 0
    starts_as_llm: ClassVar[bool] = True

    def misfit(self, slm: Any) -> str | None:
        """An encoder-decoder fits, and a model with cross-attention layers."""
        if slm.config.is_encoder_decoder:
            return None
        if not any("crossattention" in name for name, _ in slm.named_modules()):
            return "it has no cross-attention"
        return None if masks_states(slm) else "its cross-attention accepts no padded states"

    def check(self, cfg: ModelConfig) -> None:
        """Prompt tuning needs a prompt that the SLM processes."""
        if cfg.slm.tune == PROMPT:
            raise UserError(
                "model.slm.tune=prompt puts virtual tokens in front of the prompt that the SLM processes, and with "
                "model.conditioning=memory it processes none; use model.slm.tune=prefix, or another conditioning"
            )

    def modules(self, config: Any, slm: Any, encoder: Any) -> dict[str, nn.Module]:
        """The projector; removes the SLM's encoder."""
        found = super().modules(config, slm, encoder)
        if slm.config.is_encoder_decoder:
            drop_encoder(slm)
        return found

    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        """z as the states of cross-attention."""
        del model, batch
        return Prompt(z.reps_BPE, z.mask_BP, cross_attended=True)

    def positions(self, config: Any, own: int, llm: int) -> int:
        """None: the prompt is not in the SLM's sequence."""
        del config, own, llm
        return 0

    def cost(self, shapes: HybridShapes) -> PromptCost:
        """The SLM processes the start token alone, and attends to P positions."""
        return PromptCost(shapes.slm, 1, attended=shapes.llm_tokens)
