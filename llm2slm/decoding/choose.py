"""Decoders by name (`Decoding`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llm2slm.decoding.cascade import CascadeDecoder, Rule
from llm2slm.decoding.decoder import Decoder, GenerateDecoder
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.decoding.lossless import LosslessDecoder
from llm2slm.decoding.static import StaticForward, misfit
from llm2slm.types import Decoding, SystemKind, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


def decoder(name: Decoding, model: LLM2SLM, llm: LLM2SLM | None = None, rule: Rule | None = None) -> Decoder:
    """A decoder of a system; where the system's steps cannot be captured, `generate`, with one line that says why.

    Args:
        model: a system in eval mode.
        llm: of a hybrid, as a system that generates alone, for the decoders in `WITH_LLM`.
        rule: of a cascade.

    Raises:
        UserError: the decoder needs a hybrid, or does not support it.
    """
    if name is Decoding.generate:
        return GenerateDecoder(model)
    if name is Decoding.eager:
        return LoopDecoder(model, Forward(model), name.value)
    if name is Decoding.lossless:
        if model.kind is not SystemKind.llm2slm or llm is None:
            raise UserError(f"decoding={name}: needs a hybrid, whose drafts its LLM verifies; "
                            f"this is {model.kind.value}; use decoding=captured")  # fmt: skip
        return LosslessDecoder(model, llm)
    if name is Decoding.cascade:
        if model.kind is not SystemKind.llm2slm or llm is None:
            raise UserError(f"decoding={name}: needs a hybrid, some of whose answers its LLM writes anew; "
                            f"this is {model.kind.value}; use decoding=captured")  # fmt: skip
        assert rule is not None
        return CascadeDecoder(model, llm, rule)
    if reason := misfit(model):
        print(f"llm2slm: decoding={name}: {reason}; using generate", file=sys.stderr)
        return GenerateDecoder(model)
    return LoopDecoder(model, StaticForward(model), name.value)


WITH_LLM = (Decoding.lossless, Decoding.cascade)
"""Decoders that load the LLM of a hybrid as a whole."""
