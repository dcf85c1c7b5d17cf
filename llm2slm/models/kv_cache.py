"""Keys and values of a prompt: their layout as representations, and the cache that a model attends to."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llm2slm.models.loading.partial_loading import blocks_of, depth_of
from llm2slm.types import UserError


@dataclass(frozen=True)
class CacheShape:
    """Shape of the keys (or values) of one block for one token: key-value heads and their width."""

    heads: int
    width: int

    @property
    def size(self) -> int:
        """Elements."""
        return self.heads * self.width


@dataclass(frozen=True)
class PromptCache:
    """Keys and values of prompt tokens that a decoder-only model attends to without processing them.

    Attributes:
        layers: keys and values of each block of the model, each (B, heads, C, width).
        mask_BC: 1 at real tokens.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask_BC: Tensor

    def rows(self, rows_K: Tensor) -> PromptCache:
        """Those of some prompts, by their indices."""
        layers = tuple((keys[rows_K], values[rows_K]) for keys, values in self.layers)
        return PromptCache(layers, self.mask_BC[rows_K])

    def new(self, rows: int) -> DynamicCache:
        """A transformers cache with these keys and values, for `forward` or `generate` to append to.

        Args:
            rows: batch size; a multiple of B, as beams and samples of a prompt are consecutive rows.
        """
        copies = rows // len(self.mask_BC)
        cache = DynamicCache()
        for number, layer in enumerate(self.layers):
            keys, values = (tensor.repeat_interleave(copies, 0) if copies > 1 else tensor for tensor in layer)
            cache.update(keys, values, number)
        return cache


def flat(cache: Any, blocks: Sequence[int]) -> Tensor:
    """Keys and values of blocks (1-based) in a transformers cache as reps_BPE."""
    parts = [part for block in blocks for part in (cache.layers[block - 1].keys, cache.layers[block - 1].values)]
    return torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=-1)


def by_block(reps_BPE: Tensor, shape: CacheShape) -> tuple[tuple[Tensor, Tensor], ...]:
    """The inverse of `flat`: keys and values (B, heads, P, width) of each block."""
    parts_BPMHW = reps_BPE.unflatten(-1, (-1, shape.heads, shape.width))
    parts = parts_BPMHW.permute(2, 0, 3, 1, 4).unbind()
    return tuple(zip(parts[::2], parts[1::2], strict=True))


@torch.no_grad()
def cache_shape(model: PreTrainedModel, name: str) -> CacheShape:
    """Shape of a block's cached keys and values in a decoder-only model, from a forward pass on two tokens.

    Args:
        name: of the model in an error message, as "LLM".

    Raises:
        UserError: it does not cache keys and values of the same shape in every block.
    """
    ids_BQ = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    was_training, cache = model.training, DynamicCache()
    model.eval()
    try:
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise TypeError("no cache")
        model(input_ids=ids_BQ, attention_mask=torch.ones_like(ids_BQ), past_key_values=cache, use_cache=True)
    except (TypeError, ValueError, AttributeError, LookupError, NotImplementedError):  # LookupError: recurrent blocks
        cache = DynamicCache()
    finally:
        model.train(was_training)
    kept = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
    shapes = {(t.shape[1], t.shape[3]) if isinstance(t, Tensor) and t.dim() == 4 else None for t in kept}
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    stack = blocks_of(model)
    blocks = depth_of(model) if stack is None else len(stack)
    if shape is None or len(cache.layers) != blocks:  # Gemma 3n: some blocks read the cache of another
        raise UserError(
            f"model.conditioning=kv: the {name}, a {model.config.model_type}, does not cache keys and values of one "
            "shape in every block; use another conditioning"
        )
    return CacheShape(*shape)


def refuse_checkpointing(slm: PreTrainedModel, cached: str) -> None:
    """Refuses gradient checkpointing, with which transformers' blocks ignore the cache that they are given.

    Args:
        cached: what the cache holds, for the error message.

    Raises:
        UserError: it is enabled, and the SLM in train mode.
    """
    if slm.training and any(getattr(module, "gradient_checkpointing", False) for module in slm.modules()):
        raise UserError(
            f"gradient checkpointing: {cached} in the SLM's cache, which checkpointed blocks ignore; call "
            "model.gradient_checkpointing_disable(), or leave gradient_checkpointing=True out"
        )
