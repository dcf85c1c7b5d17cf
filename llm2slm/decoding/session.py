"""Buffers of fixed size for the keys and values of a batch, and forward passes over them, which are captured once.

Rows may have different lengths. Masked positions of the buffers change a float32 logit by rounding only.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from llm2slm.decoding.capture import Rewrite, captured, replayed
from llm2slm.decoding.products import Products
from llm2slm.decoding.row_cache import RowCache, positions_by_row
from llm2slm.decoding.state import DecodeState
from llm2slm.models.prompt import GatedStates, Prompt

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

CAPACITY = 64
"""Positions of the response's cache are a multiple of it, so that a captured graph fits many prompts."""
ATTENDED = 32
"""The same for the positions that cross-attention attends to."""
CAPTURED = 3
"""A pass over few rows, or on a GPU, is captured when its shape is used for the third time: capturing costs as much as
dozens of passes."""
FEW, CAPTURED_LATE = 8, 24
"""A pass over more than `FEW` rows on a CPU is captured when its shape is used this often: it gains less, and the rows
of a batch of a corpus leave it soon, so that each of many sizes is used for a few passes."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of blocks, as transformers' configs name them."""

Shapes = tuple[tuple[int, int, int], ...]
"""Of each block's cache: heads, width of keys, width of values."""


@dataclass(frozen=True)
class Layout:
    """Shapes of the buffers of one row.

    Attributes:
        own, across: of the caches of self-attention and of cross-attention (None: it has none).
        gated: of the gated layers; None: there are none.
        capacity: S, slots of self-attention. attended: P, positions of (gated) cross-attention.
        width: of the prompt's states. decoder_only: the sequence has padding before it.
    """

    own: Shapes
    across: Shapes | None
    gated: Shapes | None
    capacity: int
    attended: int
    width: int
    decoder_only: bool
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, state: DecodeState, slots: int) -> Self:
        """The layout that a state needs.

        Args:
            slots: of the longest sequence in the cache.
        """
        own, across = caches(state.cache)
        gated, like = state.prompt.gated_states, own.layers[0].keys
        attended = state.prompt.mask_BQ.shape[1] if gated is None else gated.mask_BP.shape[1]
        return cls(
            own=_shapes((layer.keys, layer.values) for layer in own.layers),
            across=None if across is None else _shapes((layer.keys, layer.values) for layer in across.layers),
            gated=None if gated is None else _shapes(gated.keys_values),
            capacity=_up(slots, CAPACITY),
            attended=_up(attended, ATTENDED),
            width=state.prompt.states_BQD.shape[2],
            decoder_only=state.mask_BC is not None,
            dtype=like.dtype,
            device=like.device,
        )


class Session:
    """Buffers for batches of one size, and the captured forward passes over them, by the number of their tokens.

    Args:
        model: the system.
        layout: of the buffers. rows: B.
        rewrite: of captured graphs. products: of the forward passes; None: the model's.
    """

    @torch.inference_mode(False)  # the buffers are changed in inference mode and outside of it
    def __init__(
        self,
        model: LLM2SLM,
        layout: Layout,
        rows: int,
        rewrite: Rewrite | None = None,
        products: Products | None = None,
    ) -> None:
        self.model, self.slm, self.layout, self.rows, self.rewrite = model, model.slm, layout, rows, rewrite
        self.products = Products({}) if products is None else products
        like = torch.empty(0, dtype=layout.dtype, device=layout.device)
        self.low = torch.finfo(layout.dtype).min
        self.last_position = (
            getattr(self.slm.config.get_text_config(), "max_position_embeddings", None) or layout.capacity
        ) - 1
        self.own = RowCache(_buffers(layout.own, rows, layout.capacity, like))
        self.across: RowCache | None = None
        self.cache: Any = self.own
        self.cross_mask_B11P: Tensor | None = None
        if layout.across is not None:
            self.across = RowCache(_buffers(layout.across, rows, layout.attended, like))
            self.cache = EncoderDecoderCache(self.own, self.across)
            self.cache.is_updated = dict.fromkeys(range(len(self.across.layers)), True)
            self.cross_mask_B11P = like.new_zeros(rows, 1, 1, layout.attended)
        self.start_B = torch.zeros(rows, dtype=torch.int64, device=layout.device)
        self.slots_S = torch.arange(layout.capacity, device=layout.device)
        self.states_BPD = like.new_zeros(rows, layout.attended, layout.width)
        self.gated: GatedStates | None = None
        if layout.gated is not None:
            mask_BP = torch.zeros(rows, layout.attended, dtype=torch.int64, device=layout.device)
            self.gated = GatedStates(_buffers(layout.gated, rows, layout.attended, like), mask_BP)
        self.inputs: dict[int, tuple[Tensor, Tensor]] = {}
        self.graphs: dict[int, Callable[[], Tensor]] = {}
        self.uses: Counter[int] = Counter()

    def adopt(self, state: DecodeState) -> None:
        """Copies what the SLM has processed into the first rows of the buffers, as many as the state has."""
        own, across = caches(state.cache)
        rows = slice(0, len(state.rows_B))
        self.own.fill(_padded_left([(layer.keys, layer.values) for layer in own.layers], state.mask_BC))
        if state.mask_BC is not None:
            self.start_B[rows] = state.mask_BC.shape[1] - state.mask_BC.long().sum(1)  # new tokens are real in all rows
        if self.across is not None and across is not None and self.cross_mask_B11P is not None:
            self.across.fill([(layer.keys, layer.values) for layer in across.layers])
            mask_BP = state.prompt.mask_BQ
            self.cross_mask_B11P.fill_(self.low)
            self.cross_mask_B11P[rows, 0, 0, : mask_BP.shape[1]].masked_fill_(mask_BP == 1, 0)
        if self.gated is not None and state.prompt.gated_states is not None:
            self._copy_gated(state.prompt.gated_states)

    def take(self, other: Session, rows_K: Tensor) -> None:
        """Copies some rows of another session of the same layout into the first rows."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine[: len(rows_K)] = theirs[rows_K]

    def _tensors(self) -> list[Tensor]:
        """All buffers with a row for each row of the batch."""
        found = [self.start_B, *self.own.tensors()]
        if self.across is not None and self.cross_mask_B11P is not None:
            found += [self.cross_mask_B11P, *self.across.tensors()]
        if self.gated is not None:
            found += [self.gated.mask_BP, *(tensor for pair in self.gated.keys_values for tensor in pair)]
        return found

    def _copy_gated(self, states: GatedStates) -> None:
        """Copies gated states to the beginning of the buffers. Unused rows attend to their first position."""
        assert self.gated is not None
        rows, length = slice(0, len(states.mask_BP)), states.mask_BP.shape[1]
        for pair, other in zip(self.gated.keys_values, states.keys_values, strict=True):
            for buffer, tensor in zip(pair, other, strict=True):
                buffer[rows, :, :length] = tensor
        self.gated.mask_BP.zero_()
        self.gated.mask_BP[:, 0] = 1
        self.gated.mask_BP[rows, :length] = states.mask_BP

    def advance(self, ids_BQ: Tensor, slots_BQ: Tensor) -> Tensor:
        """logits_BQV after Q tokens of the first B rows, which are written to the slots.

        The result is valid until the next call.

        Args:
            slots_BQ: consecutive in each row; what a row has in later slots is written over or never attended to.
        """
        rows, tokens = ids_BQ.shape
        if tokens not in self.inputs:
            with torch.inference_mode(False):
                zeros = ids_BQ.new_zeros(self.rows, tokens)
                self.inputs[tokens] = zeros, zeros + torch.arange(tokens, device=zeros.device)
        for buffer, value in zip(self.inputs[tokens], (ids_BQ, slots_BQ), strict=True):
            buffer[:rows] = value
        return self._logits(tokens)[:rows]

    def _logits(self, tokens: int) -> Tensor:
        """The logits of all rows of the buffers after the tokens in `inputs`."""
        self.uses[tokens] += 1
        if tokens in self.graphs:
            with torch.inference_mode():  # each operation costs less without the bookkeeping of autograd
                return self.graphs[tokens]()
        on_gpu = self.layout.device.type == "cuda"
        if self.uses[tokens] < (CAPTURED if on_gpu or self.rows <= FEW else CAPTURED_LATE) and self.rewrite is None:
            return self._compute(*self.inputs[tokens])
        compute, logits_BQV = captured(lambda: self._compute(*self.inputs[tokens]), self.rewrite)
        self.graphs[tokens] = replayed(compute, self.layout.device) if on_gpu else compute
        return logits_BQV if self.rewrite is None else self.graphs[tokens]()

    def _compute(self, ids_BQ: Tensor, slots_BQ: Tensor) -> Tensor:
        """The forward pass itself."""
        self.own.slots_BQ = slots_BQ
        real_BQS = (self.slots_S <= slots_BQ.unsqueeze(-1)) & (self.slots_S >= self.start_B[:, None, None])
        seq2seq = self.slm.config.is_encoder_decoder
        inputs: dict[str, Any] = {"decoder_input_ids" if seq2seq else "input_ids": ids_BQ}
        inputs["decoder_attention_mask" if seq2seq else "attention_mask"] = self._masks(real_BQS, slots_BQ)
        if seq2seq and "decoder_position_ids" in inspect.signature(self.slm.forward).parameters:
            inputs["decoder_position_ids"] = slots_BQ.clamp(max=self.last_position)
        if self.cross_mask_B11P is not None and seq2seq:
            output = BaseModelOutput(last_hidden_state=self.states_BPD)
            inputs |= {"encoder_outputs": output, "attention_mask": self.cross_mask_B11P}
        elif self.cross_mask_B11P is not None:
            inputs |= {"encoder_hidden_states": self.states_BPD, "encoder_attention_mask": self.cross_mask_B11P}
        if self.layout.decoder_only:  # rejected drafts may exceed the last position
            inputs["position_ids"] = (slots_BQ - self.start_B.unsqueeze(1)).clamp(0, self.last_position)
        prompt = Prompt(self.states_BPD, ids_BQ, gated_states=self.gated)
        positions = min(self.layout.capacity, self.last_position + 1)
        by_row = positions_by_row(self.slm, slots_BQ.clamp(max=self.last_position), positions)
        with self.model.attending(prompt), by_row, self.products.active():
            logits_BQV: Tensor = self.slm(**inputs, past_key_values=self.cache, use_cache=True, return_dict=True).logits
        return logits_BQV

    def _masks(self, real_BQS: Tensor, slots_BQ: Tensor) -> Any:
        """Additive masks (B, 1, Q, S): one, or one for each type of block by its name in the config.

        Args:
            real_BQS: earlier positions of the sequence, which a block without a window attends to.
        """
        window, types = windows(self.slm)

        def mask(*, sliding: bool) -> Tensor:
            seen_BQS = real_BQS & (self.slots_S > slots_BQ.unsqueeze(-1) - window) if sliding else real_BQS
            return torch.where(seen_BQS, 0.0, self.low).to(self.states_BPD.dtype).unsqueeze(1)

        if types is None:
            return mask(sliding=window > 0)
        return {name: mask(sliding=name == SLIDING) for name in (FULL, SLIDING)}


def caches(cache: Any) -> tuple[Any, Any]:
    """The caches of self-attention and of cross-attention (None: it has none)."""
    if isinstance(cache, EncoderDecoderCache):
        return cache.self_attention_cache, cache.cross_attention_cache
    return cache, None


def _padded_left(pairs: list[tuple[Tensor, Tensor]], mask_BC: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Keys and values with all padding before the first real position; it is elsewhere after a trained prefix."""
    if mask_BC is None or not bool((mask_BC[:, :-1] > mask_BC[:, 1:]).any()):
        return pairs
    index_B1C1 = mask_BC.long().argsort(dim=1, stable=True)[:, None, :, None]

    def moved(tensor: Tensor) -> Tensor:
        return tensor.gather(2, index_B1C1.expand(-1, tensor.shape[1], -1, tensor.shape[3]))

    return [(moved(keys), moved(values)) for keys, values in pairs]


def windows(slm: PreTrainedModel) -> tuple[int, set[str] | None]:
    """Size of the sliding window (0: none), and the types of the decoder's blocks if they differ."""
    config = slm.config.get_text_config(decoder=True)
    types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) or 0
    if not types:
        return window, None
    return (window, types) if SLIDING in types else (0, None)


def _up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is not less."""
    return -(-number // step) * step


def _shapes(pairs: Any) -> Shapes:
    """Heads and widths of (B, heads, length, width) keys and values."""
    return tuple((keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in pairs)


def _buffers(shapes: Shapes, rows: int, length: int, like: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Zeros for keys and values, (rows, heads, length, width) each."""
    return tuple(
        (like.new_zeros(rows, heads, length, keys), like.new_zeros(rows, heads, length, values))
        for heads, keys, values in shapes
    )
