"""FrozenEncoder: any transformers model as a reader. Token ids in, representations out, weights never touched.

Of an encoder-decoder the encoder is kept and its last layer read. Of a decoder-only model (features of an
intermediate layer, Bergner et al. 2024) `layer` says which one is read. What is not read is not kept.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2slm.models.conditioning import positions
from llm2slm.models.pruning import Layer, blocks_of, body_of, depth_of, leave_out, reads_both_ways
from llm2slm.types import Reps


class FrozenEncoder(nn.Module):
    """An LLM that reads. It has no gradient, and stays in eval mode whatever `.train()` is called on it.

    Args:
        llm: encoder-decoder, encoder, or decoder-only model without a head.
        layer: 0 the embeddings, n the output of block n, negative from the end (-1 the last, after the model's final
            norm); a fraction of the depth; or a list of several, whose representations stand side by side. None: the
            last layer of an encoder, the middle one of a decoder-only model.

    Attributes:
        layers: absolute numbers of the layers that are read; chosen: as they were asked for.
        width: that of one of them, E / len(layers).

    Raises:
        UserError: the model has no such layer.
    """

    def __init__(self, llm: PreTrainedModel, layer: Layer = None) -> None:
        super().__init__()
        self.layers = leave_out(llm, layer)
        self.chosen = layer
        self.body = body_of(llm)
        self.width: int = self.body.config.get_text_config().hidden_size
        self.depth = depth_of(self.body)
        self.decoder_only = not reads_both_ways(llm.config)
        self._read: dict[int, Tensor] = {}
        for number in self.layers:
            self._listen(number)
        self._arguments: dict[str, Any] = {}
        known = inspect.signature(self.body.forward).parameters
        if self.decoder_only:
            self._arguments = {"use_cache": False} if "use_cache" in known else {}
        # counted over real tokens; an encoder counts as it was trained to, see reads_left_padded
        self._takes_positions = self.decoder_only and "position_ids" in known
        self.requires_grad_(False)
        self.eval()

    def _listen(self, number: int) -> None:
        """Keeps what a layer says, whenever the body runs. The last one is the body's own output."""
        blocks = blocks_of(self.body)
        if number == self.depth or blocks is None:
            return

        if number == 0:
            blocks[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        else:
            blocks[number - 1].register_forward_hook(partial(self._keep, number))

    def _keep(self, number: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del args
        self._read[number] = output[0] if isinstance(output, tuple) else output

    def _keep_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read[0] = args[0] if args else kwargs["hidden_states"]

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode: the dropout of a reader would be noise (a known bug of such hybrids)."""
        del mode
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        """Reads a batch of prompts, padded on either side.

        Returns:
            reps_BPE of the chosen layer (of several: one after the other along E), zero at padding, and the mask.
        """
        arguments: dict[str, Any] = {"input_ids": ids_BP, "attention_mask": mask_BP, **self._arguments}
        if self._takes_positions:
            arguments["position_ids"] = positions(mask_BP)
        self._read[self.depth] = self.body(**arguments).last_hidden_state
        reps_BPE = torch.cat([self._read[number] for number in self.layers], dim=-1)
        self._read.clear()
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
