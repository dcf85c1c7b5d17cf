"""Gated cross-attention into a decoder-only SLM (conditioning `cross_attention`): its blocks attend to z as well.

After Flamingo (Alayrac et al. 2022, arXiv 2204.14198): in front of a block, h + tanh(gate) * attention(norm(h), z), the
gate at zero, so that training starts from the plain SLM. Works on any model whose blocks can be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from llm2slm.models.loading.partial_loading import blocks_of
from llm2slm.types import UserError


class GatedCrossAttention(nn.Module):
    """One layer of it. Keys and values come from z once a prompt, queries from each new position."""

    def __init__(self, width: int, width_z: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width)
        self.query, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(width_z, width, bias=False) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(()))

    def keys_values(self, z_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, heads, P, D / heads)."""
        return self._split(self.key(z_BPD)), self._split(self.value(z_BPD))

    def forward(self, states_BQD: Tensor, keys: Tensor, values: Tensor, mask_BP: Tensor) -> Tensor:
        """The states, and what they find in z where the mask is 1."""
        query = self._split(self.query(self.norm(states_BQD)))
        found = scaled_dot_product_attention(query, keys, values, attn_mask=mask_BP[:, None, None, :].bool())
        guided_BQD: Tensor = states_BQD + self.gate.tanh() * self.out(found.transpose(1, 2).flatten(2))
        return guided_BQD

    def _split(self, states_BQD: Tensor) -> Tensor:
        split: Tensor = states_BQD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


class CrossAttentionBlocks(nn.Module):
    """Such a layer in front of every k-th block of an SLM. Out of `attending` the SLM is as it was.

    Args:
        slm: decoder-only.
        every: k; the first is in front of block k, counted from 1.

    Raises:
        UserError: the SLM's blocks cannot be told apart, or there are fewer than k.
    """

    def __init__(self, slm: PreTrainedModel, every: int = 1) -> None:
        super().__init__()
        blocks = blocks_of(slm.base_model)
        if blocks is None:
            raise UserError(
                f"model.conditioning=cross_attention: the blocks of a {slm.config.model_type} cannot be told apart; "
                "use another conditioning"
            )
        if not 1 <= every <= len(blocks):
            raise UserError(f"model.cross_every={every}: the SLM has {len(blocks)} blocks; give 1 to {len(blocks)}")
        config = slm.config.get_text_config()
        self.layers = nn.ModuleList()
        for number in range(every - 1, len(blocks), every):
            blocks[number].register_forward_pre_hook(partial(self._cross, len(self.layers)), with_kwargs=True)
            width_z = slm.get_input_embeddings().embedding_dim
            self.layers.append(GatedCrossAttention(config.hidden_size, width_z, config.num_attention_heads))
        self._known: list[tuple[Tensor, Tensor]] = []
        self._mask: Tensor | None = None

    @contextmanager
    def attending(self, z_BPD: Tensor, mask_BP: Tensor) -> Iterator[None]:
        """While it lasts, the SLM's blocks attend to z."""
        dtype = next(self.parameters()).dtype  # float32 beside a bfloat16 SLM
        self._known = [layer.keys_values(z_BPD.to(dtype)) for layer in self.layers]  # type: ignore[operator]
        self._mask = mask_BP
        try:
            yield
        finally:
            self._known, self._mask = [], None

    def _cross(self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._mask is None:
            return None
        states_BQD: Tensor = args[0] if args else kwargs["hidden_states"]
        known: tuple[Tensor, ...] = (*self._known[number], self._mask)
        rows = states_BQD.shape[0] // self._mask.shape[0]
        if rows > 1:  # beams and samples of a prompt stand one after the other
            known = tuple(t.repeat_interleave(rows, 0) for t in known)
        guided_BQD = self.layers[number](states_BQD.to(known[0].dtype), *known).to(states_BQD.dtype)
        return ((guided_BQD, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": guided_BQD})
