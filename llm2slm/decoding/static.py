"""Steps with caches of fixed size, captured as a graph once: no Python of transformers runs per token.

The prompt is processed by `Forward`; its keys and values are copied into buffers, and each step is the same sequence of
operations on the same tensors. The operations are recorded by `make_fx`, before autograd decomposes them, and run
without the modules of the model. Masked positions of the buffers change a float32 logit by rounding only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import EncoderDecoderCache, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import BaseModelOutput

from llm2slm.decoding.forward import Forward
from llm2slm.decoding.state import DecodeState
from llm2slm.models.prompt import GatedStates, Prompt

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

CAPACITY = 64
"""Positions of the response's cache are a multiple of it, so that a captured graph fits many prompts."""
ATTENDED = 32
"""The same for the positions that cross-attention attends to."""
SESSIONS = 8
"""Captured graphs that are kept, each with its buffers."""


def misfit(model: LLM2SLM) -> str | None:
    """Why the steps of a system cannot be captured; None: they can."""
    slm = model.slm
    kind = slm.config.model_type
    if not getattr(slm, "_can_compile_fullgraph", False):
        return f"transformers does not support a static cache for {kind}"
    cache = StaticCache(config=slm.config, max_cache_len=1)
    if any(type(layer) is not StaticLayer for layer in cache.layers):
        return f"a {kind} has blocks with a sliding window or a state"
    return None


@dataclass(frozen=True)
class StaticState(DecodeState):
    """A state whose cache is that of a session. A step changes the session, so only the newest state is valid.

    Attributes:
        session: the buffers.
        active_B: rows of the session that are not finished.
    """

    session: Session
    active_B: Tensor

    def keep(self, kept_K: Tensor) -> StaticState:
        """See `DecodeState`. The session computes finished rows too, until half of its rows are finished."""
        return replace(self, rows_B=self.rows_B[kept_K], active_B=self.active_B[kept_K])


class Session:
    """Buffers for batches of one size, and the captured step over them.

    Args:
        forward: of the system.
        state: of a prompt; gives shapes, types and device.
        rows: of the buffers; at least those of the state.
        capacity: S, positions of self-attention. attended: P, positions of (gated) cross-attention.
    """

    @torch.inference_mode(False)  # the buffers are changed in inference mode and outside of it
    def __init__(self, forward: Forward, state: DecodeState, rows: int, capacity: int, attended: int) -> None:
        self.model, self.slm, self.last_logits = forward.model, forward.slm, forward.last_logits
        own, across = _caches(state.cache)
        like = own.layers[0].keys
        self.rows, self.low = rows, torch.finfo(like.dtype).min
        self.own = StaticCache(config=self.slm.config, max_cache_len=capacity)
        _reserve(self.own, own, rows)
        self.cache: Any = self.own
        self.across: StaticCache | None = None
        if across is not None:
            self.across = StaticCache(config=self.slm.config, max_cache_len=attended)
            _reserve(self.across, across, rows)
            self.cache = EncoderDecoderCache(self.own, self.across)
            self.cache.is_updated = dict.fromkeys(range(len(self.across.layers)), True)
        self.ids_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=like.device)
        self.positions_B1 = None if state.mask_BC is None else torch.zeros_like(self.ids_B1)
        self.mask_B11S = like.new_zeros(rows, 1, 1, capacity)
        self.slots_S = torch.arange(capacity, device=like.device)
        self.cross_mask_B11P = None if across is None else like.new_zeros(rows, 1, 1, attended)
        self.states_BPD = state.prompt.states_BQD.new_zeros(rows, attended, state.prompt.states_BQD.shape[2])
        self.gated = _gated_buffers(state.prompt.gated_states, rows, attended)
        self.graph: Callable[[], Tensor] | None = None

    def adopt(self, state: DecodeState) -> None:
        """Copies what the SLM has processed into the buffers, as their first rows."""
        own, across = _caches(state.cache)
        length = own.layers[0].keys.shape[2]
        rows = slice(0, len(state.rows_B))
        _copy(self.own, own, rows)
        for layer in self.own.layers:
            layer.cumulative_length.fill_(length)
        self.mask_B11S.zero_()
        if state.mask_BC is not None and self.positions_B1 is not None:
            self.mask_B11S[rows, 0, 0, :length] = self._additive(state.mask_BC)
            self.positions_B1[rows, 0] = state.mask_BC.long().sum(1)
        if self.across is not None and across is not None and self.cross_mask_B11P is not None:
            _copy(self.across, across, rows)
            mask_BP = state.prompt.mask_BQ
            self.cross_mask_B11P.fill_(self.low)
            self.cross_mask_B11P[rows, 0, 0, : mask_BP.shape[1]] = self._additive(mask_BP)
        if self.gated is not None and state.prompt.gated_states is not None:
            _copy_gated(self.gated, state.prompt.gated_states, rows)

    def _additive(self, mask: Tensor) -> Tensor:
        """A mask of 1 and 0 as 0 and the lowest number."""
        return torch.zeros_like(mask, dtype=self.mask_B11S.dtype).masked_fill_(mask == 0, self.low)

    def step(self) -> Tensor:
        """logits_BV after the tokens in `ids_B1`; captures the step when it is called for the first time."""
        if self.graph is not None:
            with torch.inference_mode():  # each operation costs less without the bookkeeping of autograd
                return self.graph()
        self.graph, logits_BV = _captured(self._compute)
        return logits_BV

    def _compute(self) -> Tensor:
        """The step itself: the SLM's forward pass over one token of every row."""
        later_S = torch.where(self.slots_S > self.own.layers[0].cumulative_length, self.low, 0.0)
        mask_B11S = torch.minimum(self.mask_B11S, later_S.to(self.mask_B11S.dtype))
        seq2seq = self.slm.config.is_encoder_decoder
        inputs: dict[str, Any] = {"decoder_input_ids" if seq2seq else "input_ids": self.ids_B1}
        inputs["decoder_attention_mask" if seq2seq else "attention_mask"] = mask_B11S
        if self.cross_mask_B11P is not None and seq2seq:
            output = BaseModelOutput(last_hidden_state=self.states_BPD)
            inputs |= {"encoder_outputs": output, "attention_mask": self.cross_mask_B11P}
        elif self.cross_mask_B11P is not None:
            inputs |= {"encoder_hidden_states": self.states_BPD, "encoder_attention_mask": self.cross_mask_B11P}
        if self.positions_B1 is not None:
            inputs["position_ids"] = self.positions_B1
        prompt = Prompt(self.states_BPD, self.ids_B1, gated_states=self.gated)
        with self.model.attending(prompt):
            logits_BTV: Tensor = self.slm(
                **inputs, past_key_values=self.cache, use_cache=True, return_dict=True, **self.last_logits
            ).logits
        if self.positions_B1 is not None:
            self.positions_B1.add_(1)
        return logits_BTV[:, -1]


class StaticForward(Forward):
    """Forward passes with captured steps.

    Args:
        model: a system without a `misfit`; it stays on its device, and its weights are not replaced.
    """

    def __init__(self, model: LLM2SLM) -> None:
        super().__init__(model)
        self.sessions: OrderedDict[tuple[int, ...], Session] = OrderedDict()

    def start(self, prompt: Prompt, new_tokens: int) -> tuple[DecodeState, Tensor]:
        """See `Forward`."""
        state, logits_BV = super().start(prompt, new_tokens)
        if new_tokens == 1:
            return state, logits_BV
        length = _caches(state.cache)[0].layers[0].keys.shape[2] + new_tokens - 1
        gated = state.prompt.gated_states
        attended = state.prompt.mask_BQ.shape[1] if gated is None else gated.mask_BP.shape[1]
        session = self._session(state, len(state.rows_B), _up(length, CAPACITY), _up(attended, ATTENDED))
        session.adopt(state)
        fields = {field: getattr(state, field) for field in DecodeState.__dataclass_fields__}
        active_B = torch.arange(len(state.rows_B), device=logits_BV.device)
        return StaticState(**fields | {"cache": None}, session=session, active_B=active_B), logits_BV

    def step(self, state: DecodeState, ids_B: Tensor) -> tuple[DecodeState, Tensor]:
        """See `Forward`."""
        assert isinstance(state, StaticState)
        session, active_B = state.session, state.active_B
        session.ids_B1[active_B, 0] = ids_B
        logits_BV = session.step()
        return state, logits_BV if len(active_B) == session.rows else logits_BV[active_B]

    def _session(self, state: DecodeState, rows: int, capacity: int, attended: int) -> Session:
        """The session of this size: the one that was used before, or a new one."""
        key = (rows, capacity, attended)
        found = self.sessions.pop(key, None) or Session(self, state, *key)
        self.sessions[key] = found  # the last one is the one used last
        if len(self.sessions) > SESSIONS:
            self.sessions.popitem(last=False)
        return found


def _up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is not less."""
    return -(-number // step) * step


def _caches(cache: Any) -> tuple[Any, Any]:
    """The caches of self-attention and of cross-attention (None: it has none)."""
    if isinstance(cache, EncoderDecoderCache):
        return cache.self_attention_cache, cache.cross_attention_cache
    return cache, None


def _reserve(static: StaticCache, like: Any, rows: int) -> None:
    """Allocates buffers of the shapes of another cache."""
    for layer, other in zip(static.layers, like.layers, strict=True):
        layer.lazy_initialization(other.keys[:1].expand(rows, -1, -1, -1), other.values[:1].expand(rows, -1, -1, -1))


def _copy(static: StaticCache, cache: Any, rows: slice) -> None:
    """Copies keys and values to the beginning of the buffers."""
    for layer, other in zip(static.layers, cache.layers, strict=True):
        length = other.keys.shape[2]
        layer.keys[rows, :, :length], layer.values[rows, :, :length] = other.keys, other.values


def _gated_buffers(states: GatedStates | None, rows: int, attended: int) -> GatedStates | None:
    """Buffers for gated states."""
    if states is None:
        return None
    pairs = tuple(
        (
            keys.new_zeros(rows, keys.shape[1], attended, keys.shape[3]),
            values.new_zeros(rows, values.shape[1], attended, values.shape[3]),
        )
        for keys, values in states.keys_values
    )
    return GatedStates(pairs, states.mask_BP.new_zeros(rows, attended))


def _copy_gated(buffers: GatedStates, states: GatedStates, rows: slice) -> None:
    """Copies gated states to the beginning of the buffers. Unused rows attend to their first position."""
    length = states.mask_BP.shape[1]
    for pair, other in zip(buffers.keys_values, states.keys_values, strict=True):
        for buffer, tensor in zip(pair, other, strict=True):
            buffer[rows, :, :length] = tensor
    buffers.mask_BP.zero_()
    buffers.mask_BP[:, 0] = 1
    buffers.mask_BP[rows, :length] = states.mask_BP


def _captured(compute: Callable[[], Tensor]) -> tuple[Callable[[], Tensor], Tensor]:
    """The operations of a function as a graph over the same tensors, and the result of the run that recorded them.

    Recording runs the function once, with all changes of its buffers.
    """
    results: list[Tensor] = []

    def recorded() -> Tensor:
        results.append(compute())
        return results[0]

    graph = make_fx(recorded, pre_dispatch=True)()
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.dropout.default and not node.args[2]:  # in eval mode the identity
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph.forward, results[0]
