"""Matrix shapes of a stack of transformer blocks: the quantities from which FLOPs and bytes are computed. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cross:
    """The matrix shapes of cross-attention layers, in every block of a stack or inserted between blocks."""

    layers: int
    width: int
    inner: int  # query heads x head width
    kv: int  # key-value heads x head width
    memory_width: int  # width of the states attended to

    @property
    def weights(self) -> int:
        """Elements of the query and output matrices, which every decoding step multiplies by."""
        return self.layers * 2 * self.width * self.inner

    @property
    def memory_weights(self) -> int:
        """Elements of the key and value matrices, applied once per prompt."""
        return self.layers * 2 * self.memory_width * self.kv


@dataclass(frozen=True)
class Stack:
    """The matrix shapes of a stack of equal transformer blocks, with the matrices before and after it."""

    layers: int
    width: int
    inner: int  # query heads x head width
    kv: int  # key-value heads x head width
    feed_forward: int
    feed_forward_matrices: int  # 2, or 3 for a gated feed-forward network
    around: int = 0  # elements of matrices before and after the blocks, applied at every position
    head: int = 0  # elements of the language-model head (tied to the embeddings or not)
    cross: Cross | None = None

    @property
    def weights(self) -> int:
        """Elements of all matrices that every new position is multiplied by."""
        block = self.width * 2 * (self.inner + self.kv) + self.feed_forward_matrices * self.width * self.feed_forward
        return self.layers * block + self.around + (0 if self.cross is None else self.cross.weights)

    @property
    def memory_weights(self) -> int:
        """Elements of the key and value matrices of cross-attention, applied once per prompt."""
        return 0 if self.cross is None else self.cross.memory_weights

    def flops(self, tokens: float, keys: float, memory: float = 0, logits: float = 0) -> float:
        """FLOPs of a forward pass of `tokens` new positions.

        Args:
            keys: positions that each new position attends to, itself included.
            memory: positions that each attends to by cross-attention; their keys and values are computed already.
            logits: positions that the head is applied to.
        """
        scores = self.layers * self.inner * keys
        if self.cross is not None:
            scores += self.cross.layers * self.cross.inner * memory
        return 2 * (tokens * (self.weights + 2 * scores) + logits * self.head)

    def cache(self, keys: float, memory: float = 0) -> float:
        """Elements of cached keys and values."""
        across = 0 if self.cross is None else 2 * self.cross.layers * self.cross.kv * memory
        return 2 * self.layers * self.kv * keys + across


@dataclass(frozen=True)
class HybridShapes:
    """A prompt and the models of a hybrid, from which a way of conditioning computes its `PromptCost`.

    Attributes:
        slm: the SLM's decoder, or all blocks of a decoder-only SLM.
        prompt_tokens: Q; llm_tokens: P. width_z: D.
        virtual: positions of prompt tuning in front of the prompt.
        options: arguments of `costs.generation_cost` that single ways of conditioning read (pooled, cross_every, ...).
    """

    slm: Stack
    prompt_tokens: float
    llm_tokens: float
    width_z: int
    virtual: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class PromptCost:
    """What the SLM computes for a prompt, beyond LLM, projector and alignment, which every hybrid has.

    Attributes:
        slm: the SLM's stack, with the cross-attention layers that it runs.
        read: positions that the SLM processes up to the first response token.
        attended: positions that it attends to by cross-attention.
        cached: positions whose keys and values are in its cache before.
        flops, weights: of all other work: FLOPs, and elements of matrices.
    """

    slm: Stack
    read: float
    attended: float = 0
    cached: float = 0
    flops: float = 0
    weights: float = 0
