"""Floating-point operations and bytes of a generation, per phase, from model configs alone.

The cost model, per row of a batch and without padding:

    FLOPs = 2 x multiply-adds of every matrix product: projections, feed-forward, attention scores and their product
            with the values (the full rectangle, causal mask and sliding window or not), alignment and pooling of z,
            language-model head. Norms, softmax, activations, embedding look-ups and the learned mix of an LLM's layers
            are left out: they are a small part of the arithmetic.
    bytes = weights of those products read once per forward pass, plus keys and values read from the cache. At batch 1
            a device of bandwidth W bytes/s needs at least bytes / W seconds.

prefill is everything before the first response token: the LLM's blocks, the projector, the SLM's encoder, the
cross-attention keys and values, and the first decoder step (the head at one position). decode is the T - 1 steps after
it. Configs are plain mappings (`config.to_dict()` of a transformers config). What the SLM computes for a prompt is
defined by each conditioning (`Conditioning.cost`).

To add a family of models: a row of `FAMILIES`, and a tiny config in tests/evaluation/test_costs.py, which compares
every row with torch's count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llm2slm.models import conditioning as conditionings
from llm2slm.models.conditioning import NONE
from llm2slm.models.matrix_shapes import Cross, HybridShapes, Stack
from llm2slm.types import UserError


class Keys(NamedTuple):
    """The keys of a config that hold the shapes of its blocks."""

    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"


_USUAL = Keys()


@dataclass(frozen=True)
class Family:
    """How to compute the matrix shapes of a model family from a config.

    Attributes:
        keys: of the blocks; of an encoder-decoder, of its encoder.
        decoder: keys of an encoder-decoder's decoder; None: there is one stack of blocks.
        nested: encoder and decoder have separate configs, under the keys `encoder` and `decoder`.
        gated: three feed-forward matrices instead of two; `feed_forward_proj` in a config has priority.
        generates: whether models of the family generate.
    """

    keys: Keys = _USUAL
    decoder: Keys | None = None
    nested: bool = False
    gated: bool = False
    generates: bool = True


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
    "t5gemma": Family(decoder=_USUAL, nested=True, gated=True),
    "t5_gemma_module": Family(gated=True, generates=False),  # T5Gemma's encoder
    "bert": Family(generates=False),
    "modernbert": Family(gated=True, generates=False),
    "gpt2": Family(Keys("n_layer", "n_embd", "n_head", "n_inner")),
    "gpt_neox": Family(),
    "opt": Family(Keys(feed_forward="ffn_dim")),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _LLAMA),
}
"""By the config's model_type."""


@dataclass(frozen=True)
class Cost:
    """The cost of generating one response, as defined by the module."""

    prefill_flops: float
    decode_flops: float
    prefill_bytes: float
    decode_bytes: float

    @property
    def flops(self) -> float:
        """Of the whole response."""
        return self.prefill_flops + self.decode_flops


def supported(config: Mapping[str, Any], generates: bool = True) -> bool:
    """Whether the cost of a model can be computed: of generation, or (`generates=False`) of encoding only."""
    family = FAMILIES.get(str(config.get("model_type")))
    return family is not None and (family.generates or not generates)


def _family(config: Mapping[str, Any], generates: bool) -> Family:
    if not supported(config, generates):
        known = ", ".join(sorted(name for name in FAMILIES if supported({"model_type": name}, generates)))
        what = "generation" if generates else "encoding"
        raise UserError(f"model_type {config.get('model_type')!r}: its FLOPs of {what} are unknown; known: {known}")
    return FAMILIES[config["model_type"]]


def _stack(config: Mapping[str, Any], keys: Keys, gated: bool, layers: int | None = None) -> Stack:
    """The blocks described by these keys; `layers` of them, None: all."""
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
        config[keys.feed_forward] or 4 * width,  # GPT-2's n_inner may be None
        3 if gated else 2,
        around=2 * outer * width if outer != width else 0,
        head=outer * config["vocab_size"],
    )


def encoder_stack(config: Mapping[str, Any], layers: int | None = None) -> Stack:
    """The blocks that encode, without a head: the encoder of an encoder-decoder, or all blocks of another model; the
    first `layers` of them, None: all."""
    family = _family(config, generates=False)
    encoder = config["encoder"] if family.nested else config
    return replace(_stack(encoder, family.keys, family.gated, layers), head=0)


def decoder_stack(config: Mapping[str, Any]) -> Stack:
    """The blocks that generate: the decoder of an encoder-decoder, or all blocks of a decoder-only model."""
    family = _family(config, generates=True)
    decoder = config["decoder"] if family.nested else config
    stack = _stack(decoder, family.decoder or family.keys, family.gated)
    attended_width = encoder_stack(config).width if is_encoder_decoder(config) else stack.width
    cross = Cross(stack.layers, stack.width, stack.inner, stack.kv, attended_width)
    return replace(stack, cross=cross if is_encoder_decoder(config) or config.get("add_cross_attention") else None)


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the model has an encoder and a decoder."""
    return _family(config, generates=False).decoder is not None


def projector_weights(shape: tuple[int, int, int]) -> int:
    """Elements of the matrices of a projector of shape (E, hidden, D); hidden 0: one linear layer E -> D."""
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
    conditioning: str = NONE,
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
    """Cost of one greedy response with a key-value cache.

    Args:
        generator_config: of the generating model: an LLM or SLM alone, or a hybrid's SLM.
        prompt_tokens: Q, the prompt under its tokenizer.
        response_tokens: T, at least 1.
        llm_config: of a hybrid's LLM encoder; required unless conditioning is none.
        llm_tokens: P, the prompt under the LLM's tokenizer; None: Q.
        llm_layers: blocks of the LLM that are run; None: all blocks of its encoder.
        conditioning: name of the conditioning; determines the positions that the SLM processes and attends to.
        projector_shape: (E, hidden, D) of a hybrid's projector; required unless conditioning is none or kv.
        aligned: z is mapped to the SLM's tokens by a Q x P product.
        pooled: prepend: positions that z is reduced to, by a product with all P; None: no pooling.
        cross_every: cross_attention: distance of the gated layers, in blocks of the SLM.
        kv_mapped: kv: shape of the linear maps (matrices, source, target); None: there are none, and Q is 1.
        embedding_width: of the LLM's embeddings, if those of Q tokens are mapped to the SLM's width (tokenizers
            `llm_tokens`); 0: none are.
        virtual: virtual tokens in front of the prompt (prompt tuning).
        prefix: keys and values in front of those of self-attention (prefix tuning).
        bytes_per_weight: of weights and cache: 4 for float32, 2 for bfloat16.

    Raises:
        UserError: a model type that is not in `FAMILIES`, or an unknown conditioning.
        ValueError: a hybrid without its LLM's config or projector shape.
    """
    mode = conditionings.get(conditioning)
    # cross-attention layers of a decoder-only SLM exist only for z
    slm = decoder_stack({**generator_config, "add_cross_attention": mode.cross_attends})
    p = prompt_tokens if llm_tokens is None else llm_tokens
    flops, weights, width_z = 0.0, 0.0, 0  # before the SLM
    if conditioning != NONE:
        if llm_config is None or (projector_shape is None and mode.uses_projector):
            raise ValueError(f"conditioning={conditioning} needs llm_config and projector_shape")
        llm = encoder_stack(llm_config, llm_layers)
        width_z, projector = _projection(projector_shape, kv_mapped)
        embedded = embedding_width * width_z
        flops = llm.flops(p, p) + 2 * p * projector
        flops += 2 * prompt_tokens * (embedded + (p * width_z if aligned else 0))
        weights = llm.weights + projector + embedded
    options = {"pooled": pooled, "cross_every": cross_every, "kv_mapped": kv_mapped}
    prompt = mode.cost(HybridShapes(slm, prompt_tokens, p, width_z, virtual, options))
    read, attended = prompt.read, prompt.attended
    flops, weights = flops + prompt.flops, weights + prompt.weights
    if is_encoder_decoder(generator_config) and not mode.cross_attends:
        encoder = encoder_stack(generator_config)
        flops, weights = flops + encoder.flops(read, read), weights + encoder.weights
        read, attended = 1, read  # the start token
    return _response(
        prompt.slm, (prefix + prompt.cached, read, attended), (flops, weights), response_tokens, bytes_per_weight
    )


def _projection(shape: tuple[int, int, int] | None, kv_mapped: tuple[int, int, int] | None) -> tuple[int, int]:
    """Width of z, and elements of the matrices that compute it: of a `Projector`, or of the linear maps of kv."""
    if shape is not None:
        return shape[2], projector_weights(shape)
    matrices, source, target = kv_mapped or (0, 0, 0)
    return matrices * target, matrices * source * target


def _response(
    slm: Stack,
    positions: tuple[float, float, float],
    before: tuple[float, float],
    response_tokens: float,
    bytes_per_weight: int,
) -> Cost:
    """Cost of a whole response.

    Args:
        positions: cached before the first step; processed in the first step; attended to by cross-attention.
        before: FLOPs, and elements of matrices, before the step that gives the first token.
    """
    (cached, read, attended), (flops, weights) = positions, before
    flops += 2 * attended * slm.memory_weights + slm.flops(read, read + cached, attended, logits=1)
    step_weights = slm.weights + slm.head
    steps = response_tokens - 1
    mean_keys = cached + read + (steps + 1) / 2  # step i of 1..T-1 attends to read + i positions, itself included
    return Cost(
        prefill_flops=flops,
        decode_flops=steps * slm.flops(1, mean_keys, attended, logits=1),
        prefill_bytes=bytes_per_weight * (weights + slm.memory_weights + step_weights),
        decode_bytes=bytes_per_weight * steps * (step_weights + slm.cache(mean_keys, attended)),
    )
