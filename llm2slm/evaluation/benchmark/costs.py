"""Floating-point operations and bytes of a generation, per phase, from model configs alone.

The cost model, per row of a batch and without padding:

    FLOPs = 2 x multiply-adds of every matrix product: projections, feed-forward, attention scores and their product
            with the values (the full rectangle, causal mask and sliding window or not), alignment and pooling of z,
            language-model head. Norms, softmax, activations, embedding look-ups and the learned mix of an LLM's layers
            are left out: they are a small part of the arithmetic.
    bytes = weights of those products read once per forward pass, plus keys and values read from the cache. What a
            device of bandwidth W bytes/s cannot undercut at batch 1 is bytes / W seconds.

prefill is everything before the first response token: the LLM's blocks, the projector, the writer's encoder, the
cross-attention keys and values, and the first decoder step (the head at one position). decode is the T - 1 steps after
it. Configs are plain mappings (`config.to_dict()` of a transformers config).

To add a family of models: a row of `FAMILIES`, and a tiny config in tests/evaluation/test_costs.py, which holds every
row to torch's own count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llm2slm.types import Conditioning, UserError


class Keys(NamedTuple):
    """Under which keys of a config the shapes of its blocks stand."""

    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"


_USUAL = Keys()


@dataclass(frozen=True)
class Family:
    """How the config of a family of models tells of its matrices.

    Attributes:
        keys: of the blocks; an encoder-decoder's: of its encoder.
        decoder: keys of an encoder-decoder's decoder; None: there is one stack of blocks.
        halves: encoder and decoder have a config each, under these names.
        gated: three feed-forward matrices instead of two. A config with `feed_forward_proj` says it itself.
        writes: whether its models generate.
    """

    keys: Keys = _USUAL
    decoder: Keys | None = None
    halves: bool = False
    gated: bool = False
    writes: bool = True


_T5 = Family(
    Keys("num_layers", "d_model", "num_heads", "d_ff"), Keys("num_decoder_layers", "d_model", "num_heads", "d_ff")
)
_BART = Family(
    Keys("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim"),
    Keys("decoder_layers", "d_model", "decoder_attention_heads", "decoder_ffn_dim"),
)
_LLAMA = Family(gated=True)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    **dict.fromkeys(("bart", "mbart", "pegasus"), _BART),
    "t5gemma": Family(decoder=_USUAL, halves=True, gated=True),
    "t5_gemma_module": Family(gated=True, writes=False),  # T5Gemma's encoder
    "bert": Family(writes=False),
    "modernbert": Family(gated=True, writes=False),
    "gpt2": Family(Keys("n_layer", "n_embd", "n_head", "n_inner")),
    "gpt_neox": Family(),
    "opt": Family(Keys(feed_forward="ffn_dim")),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _LLAMA),
}
"""By the config's model_type."""


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
class Cross:
    """The matrix shapes of cross-attention layers: a block's own, or gated ones between the blocks."""

    layers: int
    width: int
    inner: int  # query heads x head width
    kv: int  # key-value heads x head width
    memory_width: int  # of the positions attended to

    @property
    def weights(self) -> int:
        """Elements of the matrices that a decoding step multiplies by: query and output."""
        return self.layers * 2 * self.width * self.inner

    @property
    def memory_weights(self) -> int:
        """Elements of the matrices that make keys and values, once per prompt."""
        return self.layers * 2 * self.memory_width * self.kv


@dataclass(frozen=True)
class Stack:
    """The matrix shapes of a stack of equal transformer blocks, and of what stands around them."""

    layers: int
    width: int
    inner: int  # query heads x head width
    kv: int  # key-value heads x head width
    feed_forward: int
    feed_forward_matrices: int  # 2, or 3 where gated
    around: int = 0  # elements of matrices before and behind the blocks, at every position
    head: int = 0  # elements of the language-model head (tied to the embeddings or not)
    cross: Cross | None = None  # attends to other positions too

    @property
    def weights(self) -> int:
        """Elements of all matrices that every new position is multiplied by."""
        block = self.width * 2 * (self.inner + self.kv) + self.feed_forward_matrices * self.width * self.feed_forward
        return self.layers * block + self.around + (0 if self.cross is None else self.cross.weights)

    @property
    def memory_weights(self) -> int:
        """Elements of the matrices that make keys and values of the positions attended to, once per prompt."""
        return 0 if self.cross is None else self.cross.memory_weights

    def flops(self, tokens: float, keys: float, memory: float = 0, logits: float = 0) -> float:
        """Of a forward pass of `tokens` new positions, each attending to `keys` positions (itself included) and across
        to `memory` ones, whose keys and values are there. The head is applied at `logits` positions."""
        scores = self.layers * self.inner * keys
        if self.cross is not None:
            scores += self.cross.layers * self.cross.inner * memory
        return 2 * (tokens * (self.weights + 2 * scores) + logits * self.head)

    def cache(self, keys: float, memory: float = 0) -> float:
        """Elements of cached keys and values."""
        across = 0 if self.cross is None else 2 * self.cross.layers * self.cross.kv * memory
        return 2 * self.layers * self.kv * keys + across


def supported(config: Mapping[str, Any], writes: bool = True) -> bool:
    """Whether this module knows the matrices of a model, as one that `writes`, or as one that reads only."""
    family = FAMILIES.get(str(config.get("model_type")))
    return family is not None and (family.writes or not writes)


def _family(config: Mapping[str, Any], writes: bool) -> Family:
    if not supported(config, writes):
        known = ", ".join(sorted(name for name in FAMILIES if supported({"model_type": name}, writes)))
        what = "writing" if writes else "reading"
        raise UserError(
            f"model_type {config.get('model_type')!r}: its FLOPs in {what} are not known here; known are {known}"
        )
    return FAMILIES[config["model_type"]]


def _stack(config: Mapping[str, Any], keys: Keys, gated: bool, layers: int | None = None) -> Stack:
    """The blocks that stand under these keys; `layers` of them, None: all."""
    width, heads = config[keys.width], config[keys.heads]
    head = config.get("head_dim") or config.get("d_kv") or width // heads
    kv_heads = config.get("num_key_value_heads") or heads
    gated = str(config.get("feed_forward_proj", "gated-" if gated else "")).startswith("gated-")
    outer = config.get("word_embed_proj_dim") or width
    return Stack(
        config[keys.layers] if layers is None else layers,
        width,
        heads * head,
        kv_heads * head,
        config[keys.feed_forward] or 4 * width,  # GPT-2 may leave it open
        3 if gated else 2,
        around=2 * outer * width if outer != width else 0,
        head=outer * config["vocab_size"],
    )


def encoder_stack(config: Mapping[str, Any], layers: int | None = None) -> Stack:
    """The blocks that read: the encoder of an encoder-decoder, or all blocks of another model; the first `layers` of
    them, None: all. Without a head."""
    family = _family(config, writes=False)
    half = config["encoder"] if family.halves else config
    return replace(_stack(half, family.keys, family.gated, layers), head=0)


def decoder_stack(config: Mapping[str, Any]) -> Stack:
    """The blocks that write: the decoder of an encoder-decoder, or all blocks of a decoder-only model."""
    family = _family(config, writes=True)
    half = config["decoder"] if family.halves else config
    stack = _stack(half, family.decoder or family.keys, family.gated)
    read = encoder_stack(config).width if is_encoder_decoder(config) else stack.width
    cross = Cross(stack.layers, stack.width, stack.inner, stack.kv, read)
    return replace(stack, cross=cross if is_encoder_decoder(config) or config.get("add_cross_attention") else None)


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the model reads with an encoder of its own."""
    return _family(config, writes=False).decoder is not None


def projector_flops(shape: tuple[int, int, int], tokens: float) -> float:
    """FLOPs of the projector on `tokens` positions; `shape` is (E, hidden, D), hidden 0: one linear layer E -> D."""
    return 2 * tokens * projector_weights(shape)


def projector_weights(shape: tuple[int, int, int]) -> int:
    """Elements of the projector's matrices."""
    width_in, hidden, width_out = shape
    return width_in * hidden + hidden * width_out if hidden else width_in * width_out


def generation_cost(
    generator_config: Mapping[str, Any],
    prompt_tokens: float,
    response_tokens: float,
    *,
    llm_config: Mapping[str, Any] | None = None,
    llm_tokens: float | None = None,
    llm_layers: int | None = None,
    conditioning: Conditioning = Conditioning.none,
    projector_shape: tuple[int, int, int] | None = None,
    aligned: bool = False,
    pooled: float | None = None,
    cross_every: int = 1,
    kv_mapped: tuple[int, int, int] | None = None,
    embedding_width: int = 0,
    virtual: int = 0,
    prefix: int = 0,
    bytes_per_weight: int = 4,
) -> Cost:
    """Cost of one greedy answer with a key-value cache.

    Args:
        generator_config: the model that writes: an LLM or SLM alone, or a hybrid's SLM.
        prompt_tokens: Q, the prompt as the writer reads it.
        response_tokens: T, at least 1.
        llm_config: a hybrid's LLM, which reads only; needed unless conditioning is none.
        llm_tokens: P, the prompt under the LLM's tokenizer; None: Q.
        llm_layers: blocks of the LLM that are run; None: all its reading blocks.
        conditioning: how the LLM reaches the writer; decides how many positions the writer reads and attends to.
        projector_shape: (E, hidden, D) of a hybrid's projector.
        aligned: representations are brought to the writer's tokens by a Q x P product.
        pooled: prepend: positions that z is reduced to, by a product with all P; None: it is not.
        cross_every: cross_attention: in front of every so many of the writer's blocks.
        kv_mapped: kv: shape of the linear maps (matrices, source, target); None: there are none, and Q is 1.
        embedding_width: of the LLM's embeddings, where the writer reads those of Q tokens through a linear layer
            (tokenizers `llm_tokens`); 0: it reads its own.
        virtual: positions of virtual tokens in front of what the writer reads (prompt tuning).
        prefix: of keys and values in front of those of its self-attention (prefix tuning).
        bytes_per_weight: of weights and cache: 4 for float32, 2 for bfloat16.

    Raises:
        UserError: a model type not known here.
        ValueError: a hybrid without its LLM's config or projector shape.
    """
    in_place = conditioning == Conditioning.memory  # of the writer's own reading; other modes leave it as it is
    generator_config = {
        **generator_config,
        "add_cross_attention": in_place,
    }  # a decoder-only writer's serves nothing else
    writer, llm_tokens = decoder_stack(generator_config), prompt_tokens if llm_tokens is None else llm_tokens
    flops, weights = 0.0, 0.0  # before the writer reads
    cached: float = prefix  # positions of keys and values in front of what it reads
    read, memory = prompt_tokens + virtual, 0.0  # positions that it reads; that it attends to across
    if conditioning == Conditioning.kv:
        if llm_config is None:
            raise ValueError("conditioning=kv needs llm_config")
        stacks = encoder_stack(llm_config, llm_layers), writer
        flops, weights, read = _kv_cost(stacks, (llm_tokens, prompt_tokens), kv_mapped, aligned)
        cached, read = cached + read - 1, 1 if kv_mapped else prompt_tokens
    elif conditioning != Conditioning.none:
        if llm_config is None or projector_shape is None:
            raise ValueError(f"conditioning={conditioning} needs llm_config and projector_shape")
        reader, width_z = encoder_stack(llm_config, llm_layers), projector_shape[2]
        embedded = embedding_width * width_z
        flops = reader.flops(llm_tokens, llm_tokens) + projector_flops(projector_shape, llm_tokens)
        flops += 2 * prompt_tokens * (embedded + (llm_tokens * width_z if aligned else 0))
        weights = reader.weights + projector_weights(projector_shape) + embedded
        if conditioning == Conditioning.prepend:
            read += llm_tokens if pooled is None else pooled
            flops += 0 if pooled is None else 2 * pooled * llm_tokens * width_z
        elif conditioning == Conditioning.cross_attention:
            gated = Cross(writer.layers // cross_every, writer.width, writer.width, writer.width, width_z)
            writer, memory = replace(writer, cross=gated), llm_tokens
        elif in_place:
            read, memory = 1, llm_tokens  # the start token only
    if is_encoder_decoder(generator_config):
        if not in_place:
            own = encoder_stack(generator_config)
            flops += own.flops(read, read)
            weights += own.weights
            memory = read
        read = 1
    return _answer(writer, (cached, read, memory), (flops, weights), response_tokens, bytes_per_weight)


def _answer(
    writer: Stack,
    positions: tuple[float, float, float],
    before: tuple[float, float],
    response_tokens: float,
    bytes_per_weight: int,
) -> Cost:
    """The whole answer, from the step that gives its first token.

    Args:
        positions: of keys and values that are there; those read in the first step; those attended to across.
        before: FLOPs and elements of matrices of what comes before that step.
    """
    (cached, read, memory), (flops, weights) = positions, before
    flops += 2 * memory * writer.memory_weights + writer.flops(read, read + cached, memory, logits=1)
    step_weights = writer.weights + writer.head
    steps = response_tokens - 1
    mean_keys = cached + read + (steps + 1) / 2  # step i of 1..T-1 attends to read + i positions, itself included
    return Cost(
        prefill_flops=flops,
        decode_flops=steps * writer.flops(1, mean_keys, memory, logits=1),
        prefill_bytes=bytes_per_weight * (weights + writer.memory_weights + step_weights),
        decode_bytes=bytes_per_weight * steps * (step_weights + writer.cache(mean_keys, memory)),
    )


def _kv_cost(
    stacks: tuple[Stack, Stack], tokens: tuple[float, float], mapped: tuple[int, int, int] | None, aligned: bool
) -> tuple[float, float, float]:
    """Of conditioning kv, before the SLM reads the last prompt token.

    Args:
        stacks: LLM and SLM. tokens: the prompt under each one's tokenizer.

    Returns:
        FLOPs, elements of matrices, and positions of the prompt in the SLM's cache, the last one included.
    """
    (llm, slm), (p, q) = stacks, tokens
    flops, weights = llm.flops(p, p), float(llm.weights)
    if mapped is None:
        return flops, weights, p
    matrices, source, target = mapped
    flops += 2 * p * matrices * source * target + (2 * q * p * matrices * target if aligned else 0)
    flops += slm.flops(q - 1, q - 1)  # its own keys and values
    return flops, weights + matrices * source * target + slm.weights, q
