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
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from llm2slm.decoding.forward import Forward
from llm2slm.decoding.row_cache import RowCache, positions_by_row
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
    cache = DynamicCache(config=slm.config.get_text_config(decoder=True))
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return f"a {kind} has blocks with a sliding window or a state"
    return None


@dataclass(frozen=True)
class StaticState(DecodeState):
    """A state whose cache is that of a session. A step changes the session, so only the newest state is valid.

    Attributes:
        session: the buffers.
        active_B: rows of the session that are not finished.
        length: slots in use, the same in all rows.
    """

    session: Session
    active_B: Tensor
    length: int

    def keep(self, kept_K: Tensor) -> StaticState:
        """See `DecodeState`. The session computes finished rows too, until half of its rows are finished."""
        return replace(self, rows_B=self.rows_B[kept_K], active_B=self.active_B[kept_K])


class Session:
    """Buffers for batches of one size, and the captured forward passes over them, by the number of their tokens.

    Args:
        forward: of the system.
        state: of a prompt; gives shapes, types and device.
        rows: of the buffers; at least those of the state.
        capacity: S, slots of self-attention. attended: P, positions of (gated) cross-attention.
    """

    @torch.inference_mode(False)  # the buffers are changed in inference mode and outside of it
    def __init__(self, forward: Forward, state: DecodeState, rows: int, capacity: int, attended: int) -> None:
        self.model, self.slm = forward.model, forward.slm
        own, across = _caches(state.cache)
        like = own.layers[0].keys
        self.rows, self.capacity, self.low = rows, capacity, torch.finfo(like.dtype).min
        self.own = RowCache(own, rows, capacity)
        self.across = None if across is None else RowCache(across, rows, attended)
        self.cache: Any = self.own
        if self.across is not None:
            self.cache = EncoderDecoderCache(self.own, self.across)
            self.cache.is_updated = dict.fromkeys(range(len(self.across.layers)), True)
        self.decoder_only = state.mask_BC is not None
        self.start_B = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.slots_S = torch.arange(capacity, device=like.device)
        self.cross_mask_B11P = None if across is None else like.new_zeros(rows, 1, 1, attended)
        self.states_BPD = state.prompt.states_BQD.new_zeros(rows, attended, state.prompt.states_BQD.shape[2])
        self.gated = _gated_buffers(state.prompt.gated_states, rows, attended)
        self.inputs: dict[int, tuple[Tensor, Tensor]] = {}
        self.graphs: dict[int, Callable[[], Tensor]] = {}

    def adopt(self, state: DecodeState) -> None:
        """Copies what the SLM has processed into the buffers, as their first rows."""
        own, across = _caches(state.cache)
        rows = slice(0, len(state.rows_B))
        self.own.fill(own)
        if state.mask_BC is not None:  # padded on the left
            self.start_B[rows] = state.mask_BC.shape[1] - state.mask_BC.long().sum(1)
        if self.across is not None and across is not None and self.cross_mask_B11P is not None:
            self.across.fill(across)
            mask_BP = state.prompt.mask_BQ
            self.cross_mask_B11P.fill_(self.low)
            self.cross_mask_B11P[rows, 0, 0, : mask_BP.shape[1]].masked_fill_(mask_BP == 1, 0)
        if self.gated is not None and state.prompt.gated_states is not None:
            _copy_gated(self.gated, state.prompt.gated_states, rows)

    def advance(self, ids_BQ: Tensor, slots_BQ: Tensor) -> Tensor:
        """logits_BQV after Q tokens of every row, which are written to the slots.

        Args:
            slots_BQ: consecutive in each row; what a row has in later slots is written over or never attended to.
        """
        tokens = ids_BQ.shape[1]
        if tokens not in self.inputs:
            with torch.inference_mode(False):
                self.inputs[tokens] = ids_BQ.clone(), slots_BQ.clone()
        for buffer, value in zip(self.inputs[tokens], (ids_BQ, slots_BQ), strict=True):
            buffer.copy_(value)
        if tokens in self.graphs:
            with torch.inference_mode():  # each operation costs less without the bookkeeping of autograd
                return self.graphs[tokens]()
        self.graphs[tokens], logits_BQV = _captured(lambda: self._compute(*self.inputs[tokens]))
        return logits_BQV

    def _compute(self, ids_BQ: Tensor, slots_BQ: Tensor) -> Tensor:
        """The forward pass itself."""
        self.own.slots_BQ = slots_BQ
        real_BQS = (self.slots_S <= slots_BQ.unsqueeze(-1)) & (self.slots_S >= self.start_B[:, None, None])
        mask_B1QS = torch.where(real_BQS, 0.0, self.low).to(self.states_BPD.dtype).unsqueeze(1)
        seq2seq = self.slm.config.is_encoder_decoder
        inputs: dict[str, Any] = {"decoder_input_ids" if seq2seq else "input_ids": ids_BQ}
        inputs["decoder_attention_mask" if seq2seq else "attention_mask"] = mask_B1QS
        if self.cross_mask_B11P is not None and seq2seq:
            output = BaseModelOutput(last_hidden_state=self.states_BPD)
            inputs |= {"encoder_outputs": output, "attention_mask": self.cross_mask_B11P}
        elif self.cross_mask_B11P is not None:
            inputs |= {"encoder_hidden_states": self.states_BPD, "encoder_attention_mask": self.cross_mask_B11P}
        if self.decoder_only:
            inputs["position_ids"] = (slots_BQ - self.start_B.unsqueeze(1)).clamp_(min=0)
        prompt = Prompt(self.states_BPD, ids_BQ, gated_states=self.gated)
        with self.model.attending(prompt), positions_by_row(self.slm, slots_BQ, self.capacity):
            logits_BQV: Tensor = self.slm(**inputs, past_key_values=self.cache, use_cache=True, return_dict=True).logits
        return logits_BQV


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
        length = _caches(state.cache)[0].layers[0].keys.shape[2]
        gated = state.prompt.gated_states
        attended = state.prompt.mask_BQ.shape[1] if gated is None else gated.mask_BP.shape[1]
        sizes = _up(length + new_tokens - 1, CAPACITY), _up(attended, ATTENDED)
        session = self._session(state, len(state.rows_B), *sizes)
        session.adopt(state)
        fields = {field: getattr(state, field) for field in DecodeState.__dataclass_fields__}
        active_B = torch.arange(len(state.rows_B), device=logits_BV.device)
        return StaticState(**fields | {"cache": None}, session=session, active_B=active_B, length=length), logits_BV

    def step(self, state: DecodeState, ids_B: Tensor) -> tuple[DecodeState, Tensor]:
        """See `Forward`."""
        assert isinstance(state, StaticState)
        session, active_B = state.session, state.active_B
        ids_BQ = ids_B.new_zeros(session.rows, 1)
        ids_BQ[active_B, 0] = ids_B
        logits_BV = session.advance(ids_BQ, torch.full_like(ids_BQ, state.length))[:, -1]
        after = replace(state, length=state.length + 1)
        return after, logits_BV if len(active_B) == session.rows else logits_BV[active_B]

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
