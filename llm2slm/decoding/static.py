"""Steps over caches of fixed size (`Session`), which are captured as a graph: no Python of transformers runs per token.

The prompt is processed by `Forward`; its keys and values are copied into buffers, and each step is the same sequence of
operations on the same tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from llm2slm.decoding.capture import Rewrite
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.products import Products, onednn
from llm2slm.decoding.session import FULL, SLIDING, Layout, Session, caches, windows
from llm2slm.decoding.state import DecodeState
from llm2slm.models.prompt import Prompt
from llm2slm.types import Reps

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

SESSIONS = 8
"""Sets of buffers that are kept, each with its captured graphs."""


def misfit(model: LLM2SLM) -> str | None:
    """Why the steps of a system cannot be captured; None: they can."""
    slm = model.slm
    kind = slm.config.model_type
    if not getattr(slm, "_can_compile_fullgraph", False):
        return f"transformers does not support a static cache for {kind}"
    cache = DynamicCache(config=slm.config.get_text_config(decoder=True))
    types = windows(slm)[1] or set()
    if types - {FULL, SLIDING} or any(not isinstance(layer, DynamicLayer) for layer in cache.layers):
        return f"a {kind} has blocks with a state, or with other attention than full and sliding"
    if (found := getattr(model, "llm2slm_step_error", None)) is None:
        model.llm2slm_step_error = found = _step_error(model)
    return f"the steps of a {kind} over buffers {found}" if found else None


TOLERANCE = {torch.float32: 1e-3}
"""Largest difference of logits, relative to the largest logit; for types of lower precision `COARSE`."""
COARSE = 5e-2


@torch.no_grad()
def _step_error(model: LLM2SLM) -> str:
    """What is wrong with the logits of steps over buffers, for two short prompts; "" if nothing is.

    Families differ in how they derive positions and masks from the cache, so each model is tried.
    """
    batch = model.collator.batch_of_texts(["a b c d e", "a"]).to(model.device)
    reps: Reps | None = None
    if model.encoder is not None and batch.llm_mask_BP is not None:
        width = model.encoder.width * len(model.encoder.layers)
        reps_BPE = torch.linspace(-1, 1, width, device=model.device).expand(*batch.llm_mask_BP.shape, width)
        reps = Reps(reps_BPE * batch.llm_mask_BP.unsqueeze(-1), batch.llm_mask_BP)
    generator = torch.Generator().manual_seed(1)
    ids_B4 = torch.randint(model.slm.config.get_text_config().vocab_size, (2, 4), generator=generator).to(model.device)
    forward, static = Forward(model), StaticForward(model)
    state, _ = forward.start(model.prefill(batch, reps), 8)
    expected = []
    for column in range(4):
        state, logits_BV = forward.step(state, ids_B4[:, column])
        expected.append(logits_BV)
    try:
        buffered, _ = static.start(model.prefill(batch, reps), 8)
        assert isinstance(buffered, StaticState)
        slots_B4 = buffered.length + torch.arange(4, device=model.device).expand(2, 4)
        first = buffered.session.advance(ids_B4[:, :1], slots_B4[:, :1])
        found_BQV = torch.cat([first, buffered.session.advance(ids_B4[:, 1:], slots_B4[:, 1:])], dim=1)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:
        return f"fail ({type(error).__name__}: {str(error).splitlines()[0]})"
    wanted_BQV = torch.stack(expected, dim=1).float()
    difference, largest = (found_BQV.float() - wanted_BQV).abs().max(), wanted_BQV.abs().max()
    return "" if difference <= TOLERANCE.get(logits_BV.dtype, COARSE) * largest else "give other logits"


@dataclass(frozen=True)
class StaticState(DecodeState):
    """A state whose cache is that of a session. A step changes the session, so only the newest state is valid.

    Attributes:
        forward: owner of the session. session: the buffers.
        active_B: rows of the session that are not finished.
        length: slots in use, the same in all rows.
        given: of them those of the prompt (and of the start token), which the rows of one prompt have in common.
    """

    forward: StaticForward
    session: Session
    active_B: Tensor
    length: int
    given: int

    def keep(self, kept_K: Tensor) -> StaticState:
        """See `DecodeState`. Finished rows are computed too, until at least half of the session's rows are finished."""
        active_B, session = self.active_B[kept_K], self.session
        if 2 * len(active_B) <= session.rows:
            session, active_B = self.forward.shrunk(session, active_B)
        return replace(self, rows_B=self.rows_B[kept_K], active_B=active_B, session=session)

    def reordered(self, rows_B: Tensor) -> StaticState:
        """See `DecodeState`. Only the slots of the response are copied, and only those of rows that change."""
        changed_K = (rows_B != torch.arange(len(rows_B), device=rows_B.device)).nonzero().squeeze(1)
        if len(changed_K):
            active_B = self.active_B
            self.session.own.copy_rows(active_B[rows_B[changed_K]], active_B[changed_K], self.given, self.length)
        return self


class StaticForward(Forward):
    """Forward passes with captured steps.

    Args:
        model: a system without a `misfit`; it stays on its device, and its weights are not replaced.
        rewrite: of captured graphs.
        reading: products of the passes over prompts; None: large ones by oneDNN on a CPU, as are those of the steps, if
            `rewrite` does not replace them.
    """

    def __init__(self, model: LLM2SLM, rewrite: Rewrite | None = None, reading: Products | None = None) -> None:
        super().__init__(model, onednn(model) if reading is None else reading)
        self.rewrite = rewrite
        self.products = Products({}) if getattr(rewrite, "replaces_products", False) else onednn(model)
        self.sessions: OrderedDict[tuple[int, Layout], Session] = OrderedDict()

    def _new_cache(self) -> Any:
        """An empty cache that keeps all positions, also of blocks with a sliding window."""
        cache = DynamicCache()
        return EncoderDecoderCache(cache, DynamicCache()) if self.slm.config.is_encoder_decoder else cache

    def start(self, prompt: Prompt, new_tokens: int, copies: int = 1) -> tuple[DecodeState, Tensor]:
        """See `Forward`."""
        state, logits_BV = super().start(prompt, new_tokens, copies)
        return (state if new_tokens == 1 else self.adopted(state, new_tokens, leaving=copies == 1)), logits_BV

    def adopted(self, state: DecodeState, new_tokens: int, behind: int = 0, *, leaving: bool = True) -> StaticState:
        """A state of `Forward`, in the buffers of a session.

        Args:
            new_tokens: after the prompt, at most. behind: number of them that the cache holds.
            leaving: rows that are finished will leave; False: all stay to the end, as beams do.
        """
        length = caches(state.cache)[0].layers[0].keys.shape[2] - behind
        session = self.session_of(Layout.of(state, length + new_tokens - 1), len(state.rows_B), leaving=leaving)
        session.adopt(state)
        fields = {field: getattr(state, field) for field in DecodeState.__dataclass_fields__}
        active_B = torch.arange(len(state.rows_B), device=state.rows_B.device)
        own = {"forward": self, "session": session, "active_B": active_B, "length": length, "given": length}
        return StaticState(**fields | {"cache": None} | own)

    def step(self, state: DecodeState, ids_B: Tensor) -> tuple[DecodeState, Tensor]:
        """See `Forward`."""
        assert isinstance(state, StaticState)
        session, active_B = state.session, state.active_B
        ids_BQ = ids_B.new_zeros(int(active_B[-1]) + 1, 1)
        ids_BQ[active_B, 0] = ids_B
        logits_BV = session.advance(ids_BQ, torch.full_like(ids_BQ, state.length))[:, -1]
        after = replace(state, length=state.length + 1)
        return after, logits_BV if len(active_B) == len(ids_BQ) else logits_BV[active_B]

    def shrunk(self, session: Session, rows_K: Tensor) -> tuple[Session, Tensor]:
        """A session of some rows of another one, and their indices in it."""
        smaller = self.session_of(session.layout, len(rows_K))
        smaller.take(session, rows_K)
        return smaller, torch.arange(len(rows_K), device=rows_K.device)

    def session_of(self, layout: Layout, rows: int, *, leaving: bool = True) -> Session:
        """The session of this size: the one that was used before, or a new one.

        Args:
            leaving: the number of its rows is a power of two, so that few sizes are captured while rows leave a batch.
        """
        size = 1 << (rows - 1).bit_length() if leaving else rows
        key = size, layout
        found = self.sessions.pop(key, None) or Session(self.model, layout, size, self.rewrite, self.products)
        self.sessions[key] = found  # the last one is the one used last
        if len(self.sessions) > SESSIONS:
            self.sessions.popitem(last=False)
        return found
