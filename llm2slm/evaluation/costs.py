"""Floating-point operations and bytes of a generation, per phase, from model configs alone.

The cost model, per row of a batch and without padding:

    FLOPs = 2 x multiply-adds of every matrix product: projections, feed-forward, attention scores and their product
            with the values (the full rectangle, causal mask or not), language-model head. Norms, softmax, activations
            and embedding look-ups are left out: they are a small part of the arithmetic.
    bytes = weights of those products read once per forward pass, plus keys and values read from the cache. What a
            device of bandwidth W bytes/s cannot undercut at batch 1 is bytes / W seconds.

prefill is everything before the first response token: the LLM's blocks, the projector, the writer's encoder, the
cross-attention keys and values, and the first decoder step (the head at one position). decode is the T - 1 steps after
it. Configs are plain mappings (`config.to_dict()` of a transformers config).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm2slm.types import Conditioning, UserError

T5_TYPES = frozenset({"t5", "mt5", "umt5"})
GPT2_TYPES = frozenset({"gpt2"})
LLAMA_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"})


@dataclass(frozen=True)
class Cost:
    """What one row's generation costs; see the module for what counts."""

    prefill_flops: float
    decode_flops: float
    prefill_bytes: float
    decode_bytes: float

    @property
    def flops(self) -> float:
        """Of the whole answer."""
        return self.prefill_flops + self.decode_flops


@dataclass(frozen=True)
class Stack:
    """The matrix shapes of a stack of equal transformer blocks."""

    layers: int
    width: int
    inner: int  # query heads x head width
    kv: int  # key-value heads x head width
    feed_forward: int
    feed_forward_matrices: int  # 2, or 3 where gated
    cross: bool = False  # attends to an encoder's output too

    @property
    def weights(self) -> int:
        """Elements of all matrices that a decoding step multiplies by; cross-attention's key and value are not."""
        attention = self.width * 2 * (self.inner + self.kv)
        cross = 2 * self.width * self.inner if self.cross else 0
        return self.layers * (attention + cross + self.feed_forward_matrices * self.width * self.feed_forward)

    @property
    def memory_weights(self) -> int:
        """Elements of the matrices that make keys and values of an encoder's output, once per prompt."""
        return self.layers * 2 * self.width * self.kv if self.cross else 0

    def flops(self, tokens: float, keys: float, memory: float = 0) -> float:
        """Of `tokens` new positions, each attending to `keys` positions and to `memory` encoder positions."""
        scores = self.layers * tokens * 2 * self.inner * (keys + memory)
        return 2 * (tokens * self.weights + scores)

    def cache(self, keys: float, memory: float = 0) -> float:
        """Elements of cached keys and values."""
        return self.layers * 2 * self.kv * (keys + memory)


def supported(config: Mapping[str, Any]) -> bool:
    """Whether this module knows the model's matrices."""
    return config.get("model_type") in T5_TYPES | GPT2_TYPES | LLAMA_TYPES


def encoder_stack(config: Mapping[str, Any]) -> Stack:
    """The blocks that read: a T5's encoder, or all blocks of a decoder-only model."""
    kind = config.get("model_type")
    if kind in T5_TYPES:
        inner = config["num_heads"] * config["d_kv"]
        gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
        return Stack(config["num_layers"], config["d_model"], inner, inner, config["d_ff"], 3 if gated else 2)
    if kind in GPT2_TYPES:
        width = config["n_embd"]
        return Stack(config["n_layer"], width, width, width, config.get("n_inner") or 4 * width, 2)
    if kind in LLAMA_TYPES:
        width, heads = config["hidden_size"], config["num_attention_heads"]
        head = config.get("head_dim") or width // heads
        kv_heads = config.get("num_key_value_heads") or heads
        return Stack(config["num_hidden_layers"], width, heads * head, kv_heads * head, config["intermediate_size"], 3)
    known = ", ".join(sorted(T5_TYPES | GPT2_TYPES | LLAMA_TYPES))
    raise UserError(f"model_type {kind!r}: its FLOPs are not known here; known are {known}")


def decoder_stack(config: Mapping[str, Any]) -> Stack:
    """The blocks that write: a T5's decoder, or all blocks of a decoder-only model."""
    stack = encoder_stack(config)
    if not is_encoder_decoder(config):
        return replace(stack, cross=bool(config.get("add_cross_attention")))
    return replace(stack, layers=config.get("num_decoder_layers") or config["num_layers"], cross=True)


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the model reads with an encoder of its own."""
    return config.get("model_type") in T5_TYPES


def head_weights(config: Mapping[str, Any]) -> int:
    """Elements of the language-model head (tied to the embeddings or not)."""
    return int(decoder_stack(config).width * config["vocab_size"])


def encoder_flops(config: Mapping[str, Any], tokens: float, layers: int | None = None) -> float:
    """FLOPs of reading `tokens` prompt tokens; `layers` blocks of them, None: all."""
    stack = encoder_stack(config)
    return stack.flops(tokens, tokens) * (stack.layers if layers is None else layers) / stack.layers


def decoder_flops(
    config: Mapping[str, Any], tokens: float, past: float = 0, memory: float = 0, logits: float = 1
) -> float:
    """FLOPs of one forward pass of the writing blocks.

    Args:
        config: the model's config.
        tokens: new positions.
        past: positions already in the cache.
        memory: positions of an encoder's output; their keys and values are made in the pass where `past` is 0.
        logits: positions at which the head is applied.
    """
    stack = decoder_stack(config)
    made = 2 * memory * stack.memory_weights if past == 0 else 0
    return stack.flops(tokens, past + tokens, memory) + made + 2 * logits * head_weights(config)


def projector_flops(shape: tuple[int, int, int], tokens: float) -> float:
    """FLOPs of the projector on `tokens` positions; `shape` is (E, hidden, D), hidden 0: one linear layer E -> D."""
    return 2 * tokens * projector_weights(shape)


def projector_weights(shape: tuple[int, int, int]) -> int:
    """Elements of the projector's matrices."""
    width_in, hidden, width_out = shape
    return width_in * hidden + hidden * width_out if hidden else width_in * width_out


def generation_cost(
    writer_config: Mapping[str, Any],
    prompt_tokens: float,
    response_tokens: float,
    *,
    llm_config: Mapping[str, Any] | None = None,
    llm_tokens: float | None = None,
    llm_layers: int | None = None,
    conditioning: Conditioning = Conditioning.none,
    projector_shape: tuple[int, int, int] | None = None,
    aligned: bool = False,
    bytes_per_weight: int = 4,
) -> Cost:
    """Cost of one greedy answer with a key-value cache.

    Args:
        writer_config: the model that writes: an LLM or SLM alone, or a hybrid's SLM.
        prompt_tokens: Q, the prompt under the writer's tokenizer.
        response_tokens: T, at least 1.
        llm_config: a hybrid's LLM, which reads only; needed unless conditioning is none.
        llm_tokens: P, the prompt under the LLM's tokenizer; None: Q.
        llm_layers: blocks of the LLM that are run; None: all its reading blocks.
        conditioning: how the LLM reaches the writer; decides how many positions the writer reads.
        projector_shape: (E, hidden, D) of a hybrid's projector.
        aligned: representations are brought to the writer's tokens by a Q x P product.
        bytes_per_weight: of weights and cache: 4 for float32, 2 for bfloat16.

    Raises:
        UserError: a model type not known here.
        ValueError: a hybrid without its LLM's config or projector shape.
    """
    attends = conditioning == Conditioning.memory  # a decoder-only writer's cross-attention serves nothing else
    writer_config = {**writer_config, "add_cross_attention": attends}
    writer, llm_tokens = decoder_stack(writer_config), prompt_tokens if llm_tokens is None else llm_tokens
    read, flops, weights = prompt_tokens, 0.0, 0.0  # positions the writer reads; FLOPs and weights before it does
    if conditioning != Conditioning.none:
        if llm_config is None or projector_shape is None:
            raise ValueError(f"conditioning={conditioning} needs llm_config and projector_shape")
        reader = encoder_stack(llm_config)
        blocks = reader.layers if llm_layers is None else llm_layers
        flops = encoder_flops(llm_config, llm_tokens, blocks) + projector_flops(projector_shape, llm_tokens)
        weights = reader.weights * blocks / reader.layers + projector_weights(projector_shape)
        if aligned:
            flops += 2 * prompt_tokens * llm_tokens * projector_shape[2]
        if conditioning == Conditioning.prepend:
            read = llm_tokens + prompt_tokens
        elif conditioning == Conditioning.memory:
            read = llm_tokens
    if writer.cross:
        if conditioning != Conditioning.memory:  # there z stands in for the encoder's output
            flops += encoder_flops(writer_config, read)
            weights += encoder_stack(writer_config).weights
        first, memory = 1.0, read
    else:
        first, memory = read, 0.0
    flops += decoder_flops(writer_config, first, 0, memory)
    step_weights = writer.weights + head_weights(writer_config)
    steps = response_tokens - 1
    mean_keys = first + (steps + 1) / 2  # step i of 1..T-1 attends to first + i positions, itself included
    decode = steps * (writer.flops(1, mean_keys, memory) + 2 * head_weights(writer_config))
    return Cost(
        prefill_flops=flops,
        decode_flops=decode,
        prefill_bytes=bytes_per_weight * (weights + writer.memory_weights + step_weights),
        decode_bytes=bytes_per_weight * steps * (step_weights + writer.cache(mean_keys, memory)),
    )
