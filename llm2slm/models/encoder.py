"""FrozenEncoder: any transformers model as a reader. Token ids in, representations out, weights never touched.

Of an encoder-decoder the encoder is kept and its last layer read. Of a decoder-only model (features of an
intermediate layer, Bergner et al. 2024) `layer` says which one is read, and the blocks above it are not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2slm.models.conditioning import positions
from llm2slm.types import Reps, UserError


class FrozenEncoder(nn.Module):
    """An LLM that reads. It has no gradient, and stays in eval mode whatever `.train()` is called on it.

    Args:
        llm: encoder-decoder, encoder, or decoder-only model without a head.
        layer: 0 the embeddings, n the output of block n, negative from the end (-1 the last); None: the last layer of
            an encoder, the middle one of a decoder-only model.

    Raises:
        UserError: the model has no such layer.
    """

    def __init__(self, llm: PreTrainedModel, layer: int | None = None) -> None:
        super().__init__()
        text_config = llm.config.get_text_config()
        self.decoder_only = not llm.config.is_encoder_decoder
        self.body = llm if self.decoder_only else llm.get_encoder()
        depth: int = text_config.num_hidden_layers
        self.width: int = text_config.hidden_size
        if layer is None:
            layer = depth // 2 if self.decoder_only else depth
        self.layer = layer + depth + 1 if layer < 0 else layer
        if not 0 <= self.layer <= depth:
            raise UserError(f"model.llm.layer={layer}: the LLM has layers 0 to {depth} (or -{depth + 1} to -1)")
        self.is_last = self.layer == depth
        if self.decoder_only:
            _drop_unread_blocks(llm, self.layer)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode: the dropout of a reader would be noise (a known bug of such hybrids)."""
        del mode
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        """Reads a batch of prompts, padded on either side.

        Returns:
            reps_BPE of the chosen layer, zero at padding, and the mask.
        """
        arguments: dict[str, Any] = {"input_ids": ids_BP, "attention_mask": mask_BP}
        if self.decoder_only:  # positions counted over real tokens; an encoder counts slots, see reads_left_padded
            arguments |= {"position_ids": positions(mask_BP), "use_cache": False}
        output = self.body(**arguments, output_hidden_states=not self.is_last)
        reps_BPE = output.last_hidden_state if self.is_last else output.hidden_states[self.layer]
        return Reps(reps_BPE.masked_fill(~mask_BP.unsqueeze(-1).bool(), 0), mask_BP)

    def reads_left_padded(self) -> bool:
        """Whether padding in front of a text leaves its reading as it is (not so for an encoder's absolute positions).

        Found by trying, on a text of two tokens: no config says it.
        """
        table = self.body.get_input_embeddings().weight
        ids_BP = torch.tensor([[2, 3]], device=table.device)
        front_BP = torch.full((1, 5), 2, device=table.device)
        mask_BP = torch.ones_like(ids_BP)
        alone = self(ids_BP, mask_BP).reps_BPE.float()
        behind = self(torch.cat([front_BP, ids_BP], 1), torch.cat([0 * front_BP, mask_BP], 1)).reps_BPE[:, 5:].float()
        tolerance = 1e-3 if table.dtype == torch.float32 else 5e-2
        return bool((behind - alone).norm() <= tolerance * alone.norm())


def _drop_unread_blocks(llm: PreTrainedModel, layer: int) -> None:
    """Takes out, in place, the blocks of a decoder-only model that a reader of `layer` would run for nothing.

    One block above the layer stays: transformers gives the last block's output after the final norm only, so the layer
    that is read must not be the last. A model whose stack of blocks is not plain to see is left whole.
    """
    config = llm.config.get_text_config()
    stacks = [m for m in llm.modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers]
    if layer + 1 < config.num_hidden_layers and len(stacks) == 1:
        del stacks[0][layer + 1 :]
        config.num_hidden_layers = layer + 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: layer + 1]
