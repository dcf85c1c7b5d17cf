"""Floating-point operations, bytes and memory of a generation, per phase, from model configs alone.

The cost model, per row of a batch and without padding:

    FLOPs = 2 x multiply-adds of every matrix product: projections, feed-forward, attention scores and their product
            with the values (the full rectangle, causal mask and sliding window or not), alignment and pooling of z,
            language-model head. Norms, softmax, activations, embedding look-ups and the learned mix of an LLM's layers
            are left out: they are a small part of the arithmetic.
    bytes = weights of those products read once per forward pass, plus keys and values read from the cache. A device of
            bandwidth W bytes/s needs at least bytes / W seconds. Rows of a batch share the weights.
    memory = the weights (those of the products, embedding tables and the head; without norms, biases and position
            embeddings), plus keys and values cached at the end of the response.

prefill is everything before the first response token: the LLM's blocks, the projector, the SLM's encoder, the
cross-attention keys and values, and the first decoder step (the head at one position). decode is the T - 1 steps after
it. Configs are plain mappings (`config.to_dict()` of a transformers config). The shapes of a family are defined by
`models/families.py`, what the SLM computes for a prompt by each conditioning (`Conditioning.cost`), and lossless and
cascade decoding by `mode_costs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm2slm.models import conditioning as conditionings
from llm2slm.models.conditioning import NONE
from llm2slm.models.families import (
    decoder_stack,
    decoder_tables,
    encoder_stack,
    encoder_tables,
    is_encoder_decoder,
    whole_tables,
)
from llm2slm.models.matrix_shapes import HybridShapes, Stack


@dataclass(frozen=True)
class Work:
    """Forward passes through one stack of blocks, one after the other. Numbers are sums over the passes unless stated.

    Attributes:
        passes: number of forward passes; blocks: blocks of one pass.
        flops: FLOPs of one row. weights: elements of the matrices of one pass, which all rows share.
        cache: elements of keys and values read from the cache, of one row.
        rows: share of the rows of a batch that need this work.
    """

    passes: float
    blocks: float
    flops: float
    weights: float
    cache: float = 0
    rows: float = 1

    def runs(self, batch: int) -> float:
        """Expected number of forward passes: none if no row of the batch needs them."""
        return self.passes * (1 - (1 - self.rows) ** batch)


@dataclass(frozen=True)
class Cost:
    """The cost of generating one response, as defined by the module.

    Attributes:
        prefill, decode: the work of each phase.
        weights: elements held in memory; cache: elements of keys and values of one row at the end of the response.
        bytes_per_weight, bytes_per_value: of weights, and of keys and values.
    """

    prefill: tuple[Work, ...]
    decode: tuple[Work, ...]
    weights: float
    cache: float
    bytes_per_weight: float = 4
    bytes_per_value: float = 4

    @property
    def prefill_flops(self) -> float:
        """Of one row."""
        return sum(work.rows * work.flops for work in self.prefill)

    @property
    def decode_flops(self) -> float:
        """Of one row."""
        return sum(work.rows * work.flops for work in self.decode)

    @property
    def flops(self) -> float:
        """Of one row and the whole response."""
        return self.prefill_flops + self.decode_flops

    @property
    def prefill_bytes(self) -> float:
        """Bytes read, batch 1."""
        return sum(self.bytes_of(work) for work in self.prefill)

    @property
    def decode_bytes(self) -> float:
        """Bytes read, batch 1."""
        return sum(self.bytes_of(work) for work in self.decode)

    def bytes_of(self, work: Work, batch: int = 1) -> float:
        """Bytes read by work for a batch: weights once for all rows, keys and values of each row."""
        values = work.rows * batch * work.cache
        return work.runs(batch) * work.weights * self.bytes_per_weight + values * self.bytes_per_value

    def memory(self, batch: int = 1) -> float:
        """Bytes of weights, and of keys and values at the end of the response."""
        return self.weights * self.bytes_per_weight + batch * self.cache * self.bytes_per_value


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What precedes the response of a generating model; the defaults describe a model without an LLM encoder.

    Attributes:
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
    """

    llm_config: Mapping[str, Any] | None = None
    llm_tokens: float | None = None
    llm_layers: int | None = None
    conditioning: str = NONE
    projector_shape: tuple[int, int, int] | None = None
    aligned: bool = False
    pooled: float | None = None
    cross_every: int = 1
    kv_mapped: tuple[int, int, int] | None = None
    embedding_width: int = 0
    virtual: int = 0
    prefix: int = 0


@dataclass(frozen=True)
class Prepared:
    """A model whose next forward passes are decoding steps.

    Attributes:
        works: everything before the first response token. slm: the stack that generates.
        keys: positions in the self-attention cache; attended: positions attended to by cross-attention.
        weights: elements held in memory; llm_weights: those of the LLM encoder among them.
    """

    works: tuple[Work, ...]
    slm: Stack
    keys: float
    attended: float
    weights: float
    llm_weights: float = 0

    def steps(self, count: float, keys: float) -> tuple[Work, ...]:
        """Decoding steps of one new token each.

        Args:
            keys: mean number of positions that a step attends to, itself included.
        """
        return decoding_passes(self.slm, count, 1, keys, self.attended) if count > 0 else ()

    def response(self, tokens: float, bytes_per_weight: float = 4, bytes_per_value: float | None = None) -> Cost:
        """The cost of a greedy response, one token per forward pass."""
        steps = tokens - 1
        mean_keys = self.keys + (steps + 1) / 2  # step i of 1..T-1 attends to keys + i positions, itself included
        cache = self.slm.cache(self.keys + steps, self.attended)
        per_value = bytes_per_weight if bytes_per_value is None else bytes_per_value
        return Cost(self.works, self.steps(steps, mean_keys), self.weights, cache, bytes_per_weight, per_value)


def decoding_passes(stack: Stack, passes: float, tokens: float, keys: float, memory: float) -> tuple[Work, ...]:
    """Forward passes of `tokens` new positions each, with the head at all of them.

    Args:
        keys: mean number of positions attended to; memory: positions attended to by cross-attention.
    """
    flops = passes * stack.flops(tokens, keys, memory, logits=tokens)
    weights = stack.weights + stack.head
    return (Work(passes, stack.layers, flops, weights, passes * stack.cache(keys, memory)),)


def projector_weights(shape: tuple[int, int, int]) -> int:
    """Elements of the matrices of a projector of shape (E, hidden, D); hidden 0: one linear layer E -> D."""
    width_in, hidden, width_out = shape
    return width_in * hidden + hidden * width_out if hidden else width_in * width_out


def generation_cost(
    generator_config: Mapping[str, Any],
    prompt_tokens: float,
    response_tokens: float,
    *,
    bytes_per_weight: float = 4,
    bytes_per_value: float | None = None,
    **setup: Any,
) -> Cost:
    """Cost of one greedy response with a key-value cache.

    Args:
        generator_config: of the generating model: an LLM or SLM alone, or a hybrid's SLM.
        prompt_tokens: Q, the prompt under its tokenizer.
        response_tokens: T, at least 1.
        bytes_per_weight: 4 for float32, 2 for bfloat16.
        bytes_per_value: of keys and values; None: as the weights.
        setup: attributes of `Setup`.

    Raises:
        UserError: a model type that is not in `FAMILIES`, or an unknown conditioning.
        ValueError: a hybrid without its LLM's config or projector shape.
    """
    ready = prepared(generator_config, prompt_tokens, Setup(**setup))
    return ready.response(response_tokens, bytes_per_weight, bytes_per_value)


def prepared(generator_config: Mapping[str, Any], prompt_tokens: float, setup: Setup) -> Prepared:
    """The work before the first response token. Arguments and errors as of `generation_cost`."""
    mode = conditionings.get(setup.conditioning)
    # cross-attention layers of a decoder-only SLM exist only for z
    slm = decoder_stack({**generator_config, "add_cross_attention": mode.cross_attends})
    p = prompt_tokens if setup.llm_tokens is None else setup.llm_tokens
    works, llm_weights, width_z = _before_the_slm(prompt_tokens, p, setup)
    options = {"pooled": setup.pooled, "cross_every": setup.cross_every, "kv_mapped": setup.kv_mapped}
    prompt = mode.cost(HybridShapes(slm, prompt_tokens, p, width_z, setup.virtual, options))
    slm, read, attended, cached = prompt.slm, prompt.read, prompt.attended, setup.prefix + prompt.cached
    if prompt.flops:
        works.append(Work(1, slm.layers if prompt.weights else 0, prompt.flops, prompt.weights))
    held = sum(work.weights for work in works[1:2]) + slm.weights + slm.memory_weights
    if not is_encoder_decoder(generator_config) or mode.cross_attends:
        held += decoder_tables(generator_config)
    else:
        encoder = encoder_stack(generator_config)
        works.append(Work(1, encoder.layers, encoder.flops(read, read), encoder.weights))
        held += encoder.weights + whole_tables(generator_config)
        read, attended = 1, read  # the start token
    works += first_step(slm, read, cached, attended)
    return Prepared(tuple(works), slm, cached + read, attended, llm_weights + held, llm_weights)


def first_step(slm: Stack, read: float, cached: float, attended: float) -> list[Work]:
    """Keys and values of cross-attention, and the forward pass that gives the first token."""
    found = []
    if slm.memory_weights:
        found.append(Work(1, 0, 2 * attended * slm.memory_weights, slm.memory_weights))
    flops = slm.flops(read, read + cached, attended, logits=1)
    return [*found, Work(1, slm.layers, flops, slm.weights + slm.head, slm.cache(cached))]


def _before_the_slm(q: float, p: float, setup: Setup) -> tuple[list[Work], float, int]:
    """The LLM encoder and the maps of its representations, elements of the LLM held in memory, width of z."""
    if setup.conditioning == NONE:
        return [], 0, 0
    if setup.llm_config is None or (
        setup.projector_shape is None and conditionings.get(setup.conditioning).uses_projector
    ):
        raise ValueError(f"conditioning={setup.conditioning} needs llm_config and projector_shape")
    llm = encoder_stack(setup.llm_config, setup.llm_layers)
    width_z, projector = _projection(setup.projector_shape, setup.kv_mapped)
    embedded = setup.embedding_width * width_z
    flops = 2 * p * projector + 2 * q * (embedded + (p * width_z if setup.aligned else 0))
    works = [Work(1, llm.layers, llm.flops(p, p), llm.weights), Work(1, 1, flops, projector + embedded)]
    return works, llm.weights + encoder_tables(setup.llm_config), width_z


def _projection(shape: tuple[int, int, int] | None, kv_mapped: tuple[int, int, int] | None) -> tuple[int, int]:
    """Width of z, and elements of the matrices that compute it: of a `Projector`, or of the linear maps of kv."""
    if shape is not None:
        return shape[2], projector_weights(shape)
    matrices, source, target = kv_mapped or (0, 0, 0)
    return matrices * target, matrices * source * target
