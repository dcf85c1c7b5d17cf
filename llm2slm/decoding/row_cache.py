"""A transformers cache of fixed size whose rows may have different lengths.

A forward pass writes the keys and values of its Q new tokens to the slots of `RowCache.slots_BQ`, wherever earlier ones
are, so that rows may advance by different numbers of tokens, and tokens are taken back by writing over them. What a
token attends to is in the mask that the caller passes. Position embeddings that transformers computes from the length
of the cache (one number for all rows) are computed from the slots instead (`positions_by_row`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin


class RowLayer(CacheLayerMixin):
    """Keys and values of one block, in buffers (B, heads, S, width)."""

    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, cache: RowCache) -> None:
        super().__init__()
        self.keys, self.values, self.cache = keys, values, cache
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers exist from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values to the slots of the cache; returns the buffers."""
        assert self.keys is not None and self.values is not None
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            index = self.cache.slots_BQ[:, None, :, None].expand_as(new)
            buffer.scatter_(2, index, new)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """No number describes all rows; position embeddings do not depend on it (`positions_by_row`)."""
        return 0

    def get_max_length(self) -> int:
        """The number of slots."""
        assert self.keys is not None
        return int(self.keys.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask."""
        del query_length
        return self.get_max_length(), 0


class RowCache(Cache):
    """Buffers for the keys and values of every block.

    Attributes:
        slots_BQ: where the next forward pass writes; not used in a cache that is only read (of cross-attention).

    Args:
        buffers: of each block its keys and values, (B, heads, S, width) each.
    """

    def __init__(self, buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
        keys = buffers[0][0]
        self.slots_BQ = torch.zeros(len(keys), 1, dtype=torch.int64, device=keys.device)
        super().__init__(layers=[RowLayer(*pair, self) for pair in buffers])

    def tensors(self) -> list[Tensor]:
        """All buffers."""
        return [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]

    def fill(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copies keys and values into the first rows and slots."""
        for layer, (keys, values) in zip(self.layers, pairs, strict=True):
            rows, _, slots, _ = keys.shape
            layer.keys[:rows, :, :slots], layer.values[:rows, :, :slots] = keys, values

    def copy_rows(self, from_K: Tensor, to_K: Tensor, first: int, end: int) -> None:
        """Copies the slots from `first` up to `end` of some rows to other rows, all at once."""
        for tensor in self.tensors():
            slots = tensor[:, :, first:end]
            slots.index_copy_(0, to_K, slots.index_select(0, from_K))


@contextmanager
def positions_by_row(slm: PreTrainedModel, slots_BQ: Tensor, slots: int) -> Iterator[None]:
    """Within this context, position embeddings and biases of the decoder are those of the slots of each row.

    Args:
        slots_BQ: of the new tokens. slots: number of positions of the model, at most S of the cache.
    """
    changed: list[tuple[nn.Module, str]] = []
    try:
        for module in _decoder(slm).modules():
            if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias"):
                module.compute_bias = _bias(module, slots_BQ)
                changed.append((module, "compute_bias"))
            elif not _takes_positions(slm) and _counts_positions(module):
                module.forward = _embedding(module, slots_BQ, slots)
                changed.append((module, "forward"))
        yield
    finally:
        for module, name in changed:
            delattr(module, name)


def _decoder(slm: PreTrainedModel) -> nn.Module:
    decoder: nn.Module = slm.get_decoder() if slm.config.is_encoder_decoder else slm
    return decoder


def _counts_positions(module: nn.Module) -> bool:
    """Whether a module embeds positions that follow from the length of the cache."""
    return {"past_key_values_length", "position_ids"} <= set(inspect.signature(module.forward).parameters)


def _takes_positions(slm: PreTrainedModel) -> bool:
    """Whether positions are an argument of the forward pass."""
    return "position_ids" in inspect.signature(slm.forward).parameters


def _bias(module: Any, slots_BQ: Tensor) -> Any:
    """`compute_bias` of T5's attention with the positions of each row: (B, heads, Q, S)."""

    settings = {
        "bidirectional": not module.is_decoder,
        "num_buckets": module.relative_attention_num_buckets,
        "max_distance": module.relative_attention_max_distance,
    }
    known = inspect.signature(module._relative_position_bucket).parameters  # UMT5's has no settings
    settings = {name: value for name, value in settings.items() if name in known}

    def compute_bias(query_length: int, key_length: int, *_: Any, **__: Any) -> Tensor:
        del query_length
        memory_S = torch.arange(key_length, device=slots_BQ.device)
        buckets_BQS = module._relative_position_bucket(memory_S - slots_BQ.unsqueeze(-1), **settings)
        bias_BHQS: Tensor = module.relative_attention_bias(buckets_BQS).permute(0, 3, 1, 2)
        return bias_BHQS

    return compute_bias


def _embedding(module: nn.Module, slots_BQ: Tensor, slots: int) -> Any:
    """`forward` of a position embedding with the positions of each row: (B, Q, width)."""
    positions_S = torch.arange(slots, device=slots_BQ.device)
    ids_1S = torch.ones_like(positions_S).unsqueeze(0)
    table_SD: Tensor = module.forward(ids_1S, position_ids=positions_S).reshape(slots, -1)

    def forward(*_: Any, **__: Any) -> Tensor:
        return table_SD[slots_BQ]

    return forward
